"""``torrelque demo``: a real job, done by worker processes of which one is killed, and checked to the last byte.

``files.py``      what there is to do: find files, digest one
``worker.py``     a worker process: takes tasks, digests files, releases them with the result
``crew.py``       the worker processes seen from the producer: start, kill one, stop
``report.py``     what has happened to each task, and whether that is right
``producer.py``   the demo itself: enqueues, follows every task to its end, checks every result
``screen.py``     what is shown meanwhile and at the end
"""
