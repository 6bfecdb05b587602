"""The method: schedules, samplers, guidance, masks, in numpy and keras.ops."""
