"""Records, tokens, pictures, batches: from files to what the device receives."""
