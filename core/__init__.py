"""What passes between the rooms of kconv: tensors, checkpoints, models, errors, files, progress."""
