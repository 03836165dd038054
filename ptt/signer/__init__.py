"""The DKIM signer. Private keys are opened by one kind of process alone, the key process.

``keyprocess``  the key process: signs over a Unix socket, makes keys
``keystore``    the key files: made, checked, opened
``isolation``   what the kernel is asked to refuse the key process
``state``       which keys DNS serves: written by the control process, read by workers
``client``      a worker's calls to the key processes, in batches
``stage``       stage ``sign`` of a message: which keys, what is hashed, the signature fields
"""
