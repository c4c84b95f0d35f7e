"""The five detectors through mmdetection: upright RGB photos in, boxes with scores and categories out."""
