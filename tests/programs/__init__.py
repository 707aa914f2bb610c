"""Programs that tests run as processes of their own."""


def end_ranks():
    """End together with the other ranks of ``torch.distributed``, so that PyTorch does not abort.

    A thread of Gloo lets go of the tensors of the last exchange, for which it needs Python. Where that is ending just
    then, PyTorch aborts: one process in five did. Here it can: this thread waits, and leaves Python to others.
    """
    import time

    import torch.distributed as dist

    dist.barrier()
    time.sleep(0.1)
    dist.destroy_process_group()
