"""Small checkpoints made on the spot: nothing is downloaded, no real weight is used."""
