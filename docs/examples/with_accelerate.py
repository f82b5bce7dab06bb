import torch
from accelerate import Accelerator
from transformers import GPT2Config, GPT2LMHeadModel

import fastlm

model = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=16, n_embd=32, n_layer=2, n_head=2))
print(fastlm.patch(model))
accelerator, optimizer = Accelerator(), torch.optim.AdamW(model.parameters())
batches = torch.utils.data.DataLoader(torch.randint(100, (64, 16)), batch_size=8)
model, optimizer, batches = accelerator.prepare(model, optimizer, batches)
for tokens in batches:
    optimizer.zero_grad()
    loss = model(input_ids=tokens, labels=tokens).loss
    accelerator.backward(loss)
    optimizer.step()
print(loss.item())
