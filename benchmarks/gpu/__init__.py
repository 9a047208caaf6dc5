"""Work that wants a GPU, a script an item (`__main__`): docs/gpu.md says what each must show.

Every script takes `--device` and, with `--tiny`, proves itself on a CPU in seconds.
"""
