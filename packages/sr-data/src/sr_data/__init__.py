"""Images in and out, synthetic training images and the second-order degradation.

Import from the modules (`from sr_data.images import read_image`); this one stays empty.
"""
