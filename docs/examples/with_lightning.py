import lightning
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import fastlm


class Module(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = GPT2LMHeadModel(GPT2Config(vocab_size=100, n_positions=16, n_embd=32, n_layer=2, n_head=2))
        print(fastlm.patch(self.model))

    def training_step(self, tokens, index):
        return self.model(input_ids=tokens, labels=tokens).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


batches = torch.utils.data.DataLoader(torch.randint(100, (64, 16)), batch_size=8)
trainer = lightning.Trainer(max_steps=4, logger=False, enable_checkpointing=False, enable_progress_bar=False)
trainer.fit(Module(), batches)
print(trainer.global_step)
