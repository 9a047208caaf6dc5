"""Attacks, one a file, all called alike.

    >>> attack = Pgd(eps=8 / 255, steps=20)
    >>> result = attack(target, images, labels, seed=1)
    >>> result.images, result.success

`target` maps images to logits (metastable.attacks.target says which kinds there are).  Images are
float32 [B, C, H, W] in [0, 1]; eps and steps are in the same units.  An attack never changes its
input; what it returns lies in its ball and in [0, 1], and `success` says of each image whether it
reached its aim: an image that withstood is never passed off as an attacked one.
"""
