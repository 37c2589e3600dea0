"""Images in: named sets, Parquet files, folders and original archives, to batches on a device.

`images.load` is where to start: it finds a set by name or folder (`sets`, `folders`, `parquet`,
`archives`), decodes it once (`decoding`) or leaves it where it is (`stream`), and returns an
`ImageData`. `batches.RunData` makes of it the images of one run, noise, augmentation and order
included. A new named set is an entry of `sets.NAMED_SETS`.
"""
