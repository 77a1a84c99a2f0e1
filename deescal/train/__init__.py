"""Fine-tunes of small language models on the dataset: Ray Train, PEFT, DeepSpeed."""
