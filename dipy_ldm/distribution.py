"""Devices: how networks are run; beside ``data`` the only user of TensorFlow."""

import numpy as np
import tensorflow as tf
from tqdm import tqdm


def compiled(function, inputs):
    """Compile a function of tensors into one of arrays.

    Many times faster per call than ``keras.Model.predict``, and traced once
    whatever the size of the batch.

    Parameters
    ----------
    function : callable
        Takes and returns tensors.
    inputs : list of keras.KerasTensor
        Shape and type of each argument.

    Returns
    -------
    callable
        Takes and returns ndarrays.
    """
    signature = [tf.TensorSpec(x.shape, x.dtype) for x in inputs]
    traced = tf.function(function, input_signature=signature)

    def call(*arrays):
        arrays = (np.asarray(a, x.dtype) for a, x in zip(arrays, inputs))
        return traced(*map(tf.constant, arrays)).numpy()

    return call


def in_batches(function, array, batch_size, title=None):
    """Apply a function to an array piece by piece, so that memory suffices.

    Parameters
    ----------
    function : callable
        Takes and returns ndarrays of the same length.
    array : ndarray
        Argument, ``(n, ...)``.
    batch_size : int
        Largest length that the function is given.
    title : str, optional
        Name of a progress bar; None for no bar.

    Returns
    -------
    ndarray
        Results, ``(n, ...)``.
    """
    results = []
    with tqdm(total=len(array), desc=title, disable=title is None) as bar:
        for start in range(0, len(array), batch_size):
            piece = array[start : start + batch_size]
            results.append(function(piece))
            bar.update(len(piece))
    return np.concatenate(results)
