"""What a model's figures are held against."""
