import torch
from transformers import BertConfig, BertForMaskedLM, Trainer, TrainingArguments

import fastlm

model = BertForMaskedLM(BertConfig(vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=2))
print(fastlm.patch(model))
tokens = torch.randint(5, 100, (64, 16))
rows = [{"input_ids": row, "labels": row.where(torch.rand(16) < 0.15, -100)} for row in tokens]
arguments = TrainingArguments("runs/example", max_steps=4, save_strategy="no", report_to="none")
print(Trainer(model, arguments, train_dataset=rows).train().training_loss)
