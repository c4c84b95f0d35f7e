"""What detection and retrieval share of torch: published weights and weight files."""
