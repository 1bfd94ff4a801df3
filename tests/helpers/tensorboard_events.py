"""Reads the scalars of TensorBoard's event files, record by record, without TensorBoard."""

import collections
import struct

from tensorboardX.proto.event_pb2 import Event


def scalars(folder):
    """Reads the only event file in a folder: name of a curve -> (step, value) pairs."""
    (path,) = folder.glob("events*")
    content, place = path.read_bytes(), 0
    curves = collections.defaultdict(list)
    while place < len(content):
        # Length, its checksum, the event, its checksum.
        (length,) = struct.unpack_from("<Q", content, place)
        event = Event.FromString(content[place + 12 : place + 12 + length])
        for value in event.summary.value:
            curves[value.tag].append((event.step, value.simple_value))
        place += 12 + length + 4
    return dict(curves)
