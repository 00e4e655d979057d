"""From the bytes of a photo to a vector, or to one clear line."""

import struct
import zlib

import cv2
import numpy as np
import pytest
import torch

from metricid.cli.model import open_model
from metricid.demo.photos import PhotoReader
from metricid.errors import InputError
from metricid.models.embedder import Preprocessing
from metricid.training.distributed import World
from metricid.training.embedding import embed_images
from metricid.training.precision import pick_precision


def png(image):
    done, data = cv2.imencode(".png", np.ascontiguousarray(image[:, :, ::-1]))
    assert done
    return data.tobytes()


def noise(height, width):
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


class Fixed:
    """A model that gives the vector it was made with, and remembers what it was asked."""

    preprocessing = Preprocessing(size=(64, 32))

    def __init__(self, vector):
        self.vector, self.asked = torch.tensor([vector]), []

    def embed(self, images, *, flip):
        self.asked.append((tuple(images.shape), images.dtype, flip))
        return self.vector


def test_a_photo_gets_the_vector_that_the_evaluation_gives_the_same_image(run_folder, faces):
    model = open_model(run_folder, device="cpu", precision="fp32")
    photo = PhotoReader(model, flip=True).read(png(faces.read(faces.path(3, 1))))
    table = faces.manifest()
    row = table.paths.index(faces.path(3, 1))
    device = torch.device("cpu")
    embedded = embed_images(
        model.embedder,
        faces,
        table.select([row]),
        world=World(0, 1, device),
        precision=pick_precision("fp32", device),
        workers=0,
    )
    expected = embedded.vectors[0] / np.linalg.norm(embedded.vectors[0])
    np.testing.assert_allclose(photo.vector, expected, atol=1e-6)
    assert photo.image.shape == (32, 32, 3) and photo.note == ""


@pytest.mark.parametrize("flip", [True, False])
def test_a_photo_is_brought_to_the_size_of_the_model(flip):
    model = Fixed([3.0, 4.0])
    photo = PhotoReader(model, flip=flip).read(png(noise(128, 64)))
    assert model.asked == [((1, 64, 32, 3), torch.uint8, flip)]
    assert photo.vector.tolist() == pytest.approx([0.6, 0.8])


def claimed(width, height):
    """A PNG whose header claims a size that its data have not."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


WHOLE = png(noise(40, 40))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"GIF89a, or anything else", "not an image in JPEG, PNG"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
        (claimed(100_000, 100_000), "more than the limit of 50000000"),
        (WHOLE[: len(WHOLE) // 2], "cut off"),
        (
            png(noise(15, 300)),
            "300 x 15 pixels .* show too little; the model looks at 32 x 64, give at least 8 x 16",
        ),
        (png(noise(64, 7)), "7 x 64 pixels .* show too little"),
        (png(np.full((64, 32, 3), 200, np.uint8)), "one colour"),
        (png(np.full((64, 32, 3), (10, 120, 230), np.uint8)), "one colour"),
    ],
)
def test_what_is_no_usable_photo_gets_one_line(data, message):
    with pytest.raises(InputError, match=message) as caught:
        PhotoReader(Fixed([1.0]), flip=False).read(data)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("vector", [[0.0, 0.0], [float("nan"), 1.0]])
def test_a_photo_without_a_usable_vector_is_refused(vector):
    with pytest.raises(InputError, match="no usable embedding"):
        PhotoReader(Fixed(vector), flip=False).read(WHOLE)


@pytest.mark.parametrize(
    ("height", "width", "note"),
    [(64, 32, ""), (640, 320, ""), (20, 32, "expect lower scores"), (64, 64, "cut it as the images")],
)
def test_a_note_tells_why_scores_may_be_low(height, width, note):
    photo = PhotoReader(Fixed([1.0]), flip=False).read(png(noise(height, width)))
    assert note in photo.note and bool(photo.note) == bool(note)


def test_a_photo_among_aligned_faces_gets_a_note_unless_it_has_their_size():
    model = Fixed([3.0, 4.0])
    note = PhotoReader(model, flip=False, aligned=True).read(png(noise(128, 64))).note
    assert note == (
        "The photo has 64 x 128 pixels and is searched among faces aligned to 32 x 64: "
        "align it in the same way, for better scores."
    )
    assert PhotoReader(model, flip=False, aligned=True).read(png(noise(64, 32))).note == ""
    assert PhotoReader(model, flip=False).read(png(noise(128, 64))).note == ""
