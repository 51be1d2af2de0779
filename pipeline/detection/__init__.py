"""The detector: anchors, matching, losses, RetinaNet, augmentation and the training loop."""
