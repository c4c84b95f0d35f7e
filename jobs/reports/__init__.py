"""Reports as pages: of a run, of an ablation, of a training."""
