"""The network: anchors, matching, losses, RetinaNet, augmentation, post-processing."""
