"""Programs that tests run as processes of their own."""


def end_ranks():
    """End together with the other ranks of ``torch.distributed``, so that PyTorch does not abort.

    A thread of Gloo needs Python to release the tensors of the last exchange. If the interpreter is ending at that
    time, PyTorch aborts, which happened in one process of five. This function waits, so that the thread can run before.
    """
    import time

    import torch.distributed as dist

    dist.barrier()
    time.sleep(0.1)
    dist.destroy_process_group()
