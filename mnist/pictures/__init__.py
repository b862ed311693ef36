"""Image files that become images as a run's training images look."""

from mnist.pictures.look import Look

__all__ = ["Look"]  # not mnist.pictures.readings, which imports scipy.ndimage, because training does without
