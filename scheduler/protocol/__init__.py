"""What travels and what is stored: documents, the snapshot, states, messages of the scripts, keys and codecs."""
