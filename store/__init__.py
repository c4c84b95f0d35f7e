"""Object storage, Arrow image sets and decoding: bytes in, bytes and arrays out. Knows nothing of models or jobs."""
