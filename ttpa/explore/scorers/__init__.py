"""What one answer to one sample is worth. A scorer is any object with the call of `score.Scorer`."""
