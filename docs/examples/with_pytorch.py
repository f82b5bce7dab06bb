import torch

import fastlm.nn

layer = fastlm.nn.TransformerEncoderLayer(32, 2, 64, activation="gelu", batch_first=True)
model = torch.nn.Sequential(torch.nn.Embedding(100, 32), fastlm.nn.TransformerEncoder(layer, 2))
loss = fastlm.nn.LinearCrossEntropyLoss(32, 100)
optimizer = torch.optim.AdamW([*model.parameters(), *loss.parameters()])
for _ in range(4):
    tokens = torch.randint(100, (8, 16))
    optimizer.zero_grad()
    value = loss(model(tokens).flatten(0, 1), tokens.flatten())
    value.backward()
    optimizer.step()
print(value.item())
