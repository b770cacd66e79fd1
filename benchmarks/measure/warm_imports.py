"""What the process behind `benchmarks.measure.warm` imports, and nothing more: an operation would
start threads, which are not in its forks.
"""

from dgh_tf.common.quiet import held_stderr

with held_stderr():
    import keras
    import tensorflow

    import dgh_tf.run.session

__all__ = ["dgh_tf", "keras", "tensorflow"]
