"""What each technique is worth: variants of a finished run, judged on its stored boxes and embeddings."""
