"""Generated identities: the same everywhere, many, and neither trivial nor mislabelled."""

import hashlib
import multiprocessing
import pickle
import random

import numpy as np
import pytest

from metricid.data.synthetic import SyntheticFaces, SyntheticPedestrians
from metricid.data.synthetic.drawing import Dice, blend, hsv, ribbon, uniforms
from metricid.data.synthetic.face_shapes import build_person, part_owners
from metricid.data.synthetic.pedestrian_outfit import choose_outfit
from metricid.errors import InputError

KINDS = [SyntheticFaces, SyntheticPedestrians]
both = pytest.mark.parametrize("kind", KINDS)


def digest(source, path):
    return hashlib.sha256(source.read(path).tobytes()).hexdigest()


def read_all(source):
    return np.stack([source.read(path) for path in source.paths()])


def rank1(features, identities):
    """Leave one out, L2, by brute force."""
    distance = ((features[:, None] - features[None]) ** 2).sum(-1) if features.shape[1] < 100 else None
    if distance is None:
        squares = (features**2).sum(1)
        distance = squares[:, None] + squares[None] - 2 * features @ features.T
    np.fill_diagonal(distance, np.inf)
    return float((identities[distance.argmin(1)] == identities).mean())


@both
def test_images_have_the_promised_form(kind):
    source = kind(identities=3, images=2)
    height, width = source.size
    for path in source.paths():
        image = source.read(path)
        assert image.shape == (height, width, 3)
        assert image.dtype == np.uint8
        assert image.flags["C_CONTIGUOUS"]
        assert image.std() > 8


@both
@pytest.mark.parametrize("size", [(16, 16), (50, 31), (31, 50), (96, 96), (300, 200)])
def test_any_size(kind, size):
    source = kind(identities=1, images=3, size=size)
    assert all(source.read(path).shape == (*size, 3) for path in source.paths())


@both
def test_scene_is_the_same_at_another_size(kind):
    """Twice the pixels show the same picture: shrunk back they correlate, other pictures do not."""
    small, large = kind(identities=6, images=2), None
    large = kind(identities=6, images=2, size=(2 * small.size[0], 2 * small.size[1]))
    for identity in range(6):
        a = small.draw(identity, 0).astype(float)
        b = large.draw(identity, 0).astype(float)
        b = b.reshape(a.shape[0], 2, a.shape[1], 2, 3).mean((1, 3))
        other = small.draw((identity + 1) % 6, 1).astype(float)
        same, different = (np.corrcoef(a.ravel(), x.ravel())[0, 1] for x in (b, other))
        assert same > 0.9
        assert different < same - 0.2


@both
def test_order_of_access_and_instance_do_not_matter(kind):
    first, second = kind(seed=3, identities=12, images=3), kind(seed=3, identities=12, images=3)
    paths = first.paths()
    expected = {path: digest(first, path) for path in paths}
    random.Random(0).shuffle(paths)
    assert {path: digest(second, path) for path in paths} == expected


@both
def test_other_processes_draw_the_same(kind):
    source = kind(seed=5, identities=4, images=2)
    expected = [digest(source, path) for path in source.paths()]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.starmap(digest, [(source, path) for path in source.paths()]) == expected


@both
def test_a_part_of_a_source_has_the_images_of_the_whole(kind):
    whole, part = kind(identities=9, images=4), kind(identities=2, images=2, first_identity=5)
    assert part.paths() == [whole.path(i, k) for i in (5, 6) for k in (0, 1)]
    assert all(np.array_equal(part.read(path), whole.read(path)) for path in part.paths())


@both
def test_reading_gives_a_fresh_array(kind):
    source = kind(identities=1, images=1)
    path = source.paths()[0]
    before = source.read(path).copy()
    source.read(path)[:] = 0
    assert np.array_equal(source.read(path), before)


@both
def test_all_images_differ(kind):
    source = kind(identities=20, images=6)
    assert len({digest(source, path) for path in source.paths()}) == 120
    assert digest(kind(seed=1, identities=1, images=1), kind(seed=1).paths()[0]) != digest(
        source, source.paths()[0]
    )


@both
def test_images_of_one_person_differ_visibly(kind):
    source = kind(identities=10, images=2)
    for identity in range(10):
        a, b = (source.draw(identity, image).astype(float) for image in (0, 1))
        assert np.abs(a - b).mean() > 10


def test_people_are_many():
    """No two of ten thousand outfits are alike, nor two of a thousand faces rounded coarsely."""
    outfits = {choose_outfit(0, number) for number in range(10_000)}
    assert len(outfits) == 10_000
    looks = set()
    for number in range(1000):
        person = build_person(0, number)
        middle = np.round(person.sheet.space[:: max(1, len(person.sheet.space) // 40)], 1)
        looks.add(
            (tuple(np.round(np.array(person.skin) / 20).tolist()), len(person.sheet.shapes), middle.tobytes())
        )
    assert len(looks) == 1000


def test_a_face_is_the_same_person_in_every_image():
    """The person is a function of seed and number alone."""
    a, b = build_person(2, 77), build_person(2, 77)
    assert np.array_equal(a.sheet.space, b.sheet.space)
    assert np.array_equal(a.sheet.moves, b.sheet.moves)
    assert [shape.colour for shape in a.sheet.shapes] == [shape.colour for shape in b.sheet.shapes]


@both
def test_colours_stay_in_range(kind):
    if kind is SyntheticFaces:
        colours = [s.colour for n in range(200) for s in build_person(1, n).sheet.shapes]
    else:
        outfits = [choose_outfit(1, number) for number in range(200)]
        colours = [
            c for o in outfits for c in (o.build.skin, o.head.hair, o.top.main, o.bottom.main, o.bag.colour)
        ]
    assert min(min(c) for c in colours) >= 0
    assert max(max(c) for c in colours) <= 255


@both
def test_raw_pixels_do_not_tell_who_it_is(kind):
    """Half the size and 60 people, which is easier than the full set: fewer people to mix up."""
    default = kind().size
    source = kind(identities=60, images=8, size=(default[0] // 2, default[1] // 2))
    images, identities = read_all(source).astype(np.float64), np.repeat(np.arange(60), 8)
    assert 0.05 < rank1(images.reshape(len(images), -1), identities) <= 0.40
    assert rank1(images.mean((1, 2)), identities) <= 0.20


def test_without_the_nuisance_raw_pixels_tell_who_it_is(monkeypatch):
    """The labels mean something: in one pose and light, before one wall, pixels find the person."""
    from metricid.data.synthetic import faces

    pose = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    monkeypatch.setattr(faces, "_pose", lambda dice: pose.copy())
    monkeypatch.setattr(faces, "light_up", lambda canvas, *_: canvas)
    monkeypatch.setattr(faces, "background", lambda dice, size, colours: np.full((*size, 3), 128, np.uint8))
    source = SyntheticFaces(identities=40, images=4, size=(56, 56), first_identity=900_000)
    images = read_all(source).astype(np.float64)
    assert rank1(images.reshape(160, -1), np.repeat(np.arange(40), 4)) > 0.9


@both
def test_manifest(kind):
    source = kind(seed=4, identities=5, images=7, first_identity=10)
    manifest = source.manifest()
    assert manifest.paths == source.paths()
    assert len(manifest) == len(source) == 35
    assert manifest.identity_names()[0] == f"{source.kind}-s4-000010"
    assert all(path in source for path in manifest.paths)
    for path, identity in zip(manifest.paths, manifest.identities, strict=True):
        assert path.split("/")[-2] == identity.split("-")[-1]


@both
def test_fingerprint_follows_the_options(kind):
    def fingerprint(**options):
        return kind(**{"identities": 4, "images": 3, **options}).manifest().fingerprint()

    changes = [{"seed": 1}, {"identities": 5}, {"images": 2}, {"size": (64, 64)}, {"first_identity": 1}]
    assert fingerprint() == fingerprint()
    assert len({fingerprint(), *(fingerprint(**change) for change in changes)}) == 6


@both
def test_fingerprint_follows_the_version(kind, monkeypatch):
    before = kind(identities=2).manifest().fingerprint()
    monkeypatch.setattr(kind, "version", kind.version + 1)
    assert kind(identities=2).manifest().fingerprint() != before


def test_faces_have_no_camera_and_pedestrians_go_round_all():
    assert SyntheticFaces(identities=1).manifest().column("camera") is None
    source = SyntheticPedestrians(identities=40, images=12, cameras=4)
    cameras = source.manifest().column("camera").reshape(40, 12)
    for row in cameras:
        names, counts = np.unique(row, return_counts=True)
        assert names.tolist() == ["c1", "c2", "c3", "c4"]
        assert counts.tolist() == [3, 3, 3, 3]
    assert len(set(cameras[:, 0])) == 4


def test_a_camera_has_a_look_of_its_own():
    """Pictures of one camera share more colour than pictures of several, whoever is in them."""
    source = SyntheticPedestrians(identities=60, images=6)
    colour = read_all(source).astype(float).mean((1, 2))
    cameras = source.manifest().column("camera")
    within = np.mean([colour[cameras == name].var(0).sum() for name in np.unique(cameras)])
    assert within < 0.8 * colour.var(0).sum()


@both
def test_pickle_is_small_and_equal(kind):
    source = kind(seed=9, identities=10**6, images=100)
    source.read(source.path(999_999, 99))
    data = pickle.dumps(source)
    assert len(data) < 1000
    copy = pickle.loads(data)
    path = copy.path(123_456, 42)
    assert np.array_equal(copy.read(path), source.read(path))


@both
def test_wrong_paths(kind):
    source = kind(identities=10, images=4, first_identity=5)
    good = source.path(5, 0)
    assert good in source
    bad = ["", "x", good + "/", good.replace("v1", "v0"), good.replace("/s0/", "/s1/"), source.path(4, 0),
           source.path(15, 0), source.path(5, 4), good.replace("000005", "0000005"), good + "\n",
           good.replace("000005", "-00005"), good.replace("0", "\u0660")]  # fmt: skip
    for path in bad:
        assert path not in source
        with pytest.raises(InputError) as caught:
            source.read(path)
        assert "\n" not in str(caught.value)
        assert good in str(caught.value)
    assert 7 not in source


@both
@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"seed": -1}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"seed": True}, "seed"),
        ({"identities": 0}, "identities"),
        ({"identities": "9"}, "identities"),
        ({"images": 0}, "images"),
        ({"first_identity": -3}, "first_identity"),
        ({"first_identity": 10**9}, "first_identity"),
        ({"size": 112}, "size"),
        ({"size": (112,)}, "size"),
        ({"size": (8, 112)}, "size"),
        ({"size": (112, 5000)}, "size"),
        ({"size": (112.0, 112)}, "size"),
    ],
)
def test_bad_options(kind, options, word):
    with pytest.raises(InputError, match=word) as caught:
        kind(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cameras", [0, 1.0, 5000])
def test_bad_cameras(cameras):
    with pytest.raises(InputError, match="cameras"):
        SyntheticPedestrians(cameras=cameras)


def test_dice_follow_splitmix64():
    """Reference values of the public generator (seed 1234567)."""
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    expected = [(value >> 11) * 2.0**-53 for value in known]
    assert uniforms(1234567, 0, 3).tolist() == expected
    assert uniforms(1234567, 2, 1).tolist() == expected[2:]


def test_dice_are_uniform_and_keys_matter():
    values = np.array([Dice(0, 1, number).one() for number in range(4000)])
    assert np.abs(np.histogram(values, 10, (0, 1))[0] - 400).max() < 100
    assert Dice(1, 2).one() != Dice(2, 1).one()
    picks = [Dice(3, n).pick("abc", (1, 0, 3)) for n in range(2000)]
    assert picks.count("b") == 0
    assert abs(picks.count("a") - 500) < 90


def test_hsv_equals_the_standard_library():
    import colorsys

    dice = Dice(8)
    for _ in range(100):
        h, s, v = dice.one(), dice.one(), dice.one()
        assert np.allclose(hsv(h, s, v), np.array(colorsys.hsv_to_rgb(h, s, v)) * 255)
    assert blend((0, 0, 0), (100, 200, 40), 0.25) == (25, 50, 10)


def test_ribbon_of_a_straight_line_is_a_rectangle():
    outline = ribbon(np.array([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]]), 0.5)
    assert np.allclose(
        sorted(map(tuple, outline.round(6))), sorted((x, y) for x in (0, 1, 3) for y in (-0.25, 0.25))
    )


def test_attributes_say_what_is_drawn_and_some_cells_are_empty():
    options = {"identities": 60, "images": 3, "size": (64, 32)}
    plain = SyntheticPedestrians(**options)
    told = SyntheticPedestrians(**options, attributes=True)
    names = ("color", "bag", "hat", "skirt", "bare_legs", "carries", "height")
    assert set(told.manifest().table.column_names) == {"path", "identity", "camera", "mask", *names}
    assert told.paths() == plain.paths()
    for name in names:
        values = told.manifest().column(name).reshape(60, 3)
        assert (values == values[:, :1]).all(), "of the person, not of the picture"
        assert len(set(values[:, 0])) > 1 and "" not in values
    carries, bag = (told.manifest().column(name) for name in ("carries", "bag"))
    assert ((carries == "1") == (bag != "none")).all()
    holes = SyntheticPedestrians(**options, attributes=True, missing=0.3).manifest()
    for name in (*names, "mask"):
        empty = holes.column(name) == ""
        assert 0.15 < empty.mean() < 0.45
        assert (holes.column(name) == told.manifest().column(name))[~empty].all()
    assert holes == SyntheticPedestrians(**options, attributes=True, missing=0.3).manifest()


def test_attributes_of_faces_are_those_of_the_person():
    options = {"identities": 200, "images": 2, "size": (32, 32)}
    plain, told = SyntheticFaces(**options), SyntheticFaces(**options, attributes=True)
    worn = {"glasses": 0.38, "headband": 0.14, "earrings": 0.24, "long_hair": 0.36}
    names = {"hair", "beard", "face_ratio", *worn}
    table = told.manifest()
    assert set(table.table.column_names) == {"path", "identity", *names}
    assert told.paths() == plain.paths() and plain.manifest().table.column_names == ["path", "identity"]
    for name in names:
        values = table.column(name).reshape(200, 2)
        assert (values == values[:, :1]).all() and "" not in values and len(set(values[:, 0])) > 1
    for name, share in worn.items():  # four standard deviations of a share among 200
        assert abs((table.column(name) == "1").mean() - share) < 4 * (share * (1 - share) / 200) ** 0.5
    bald = table.column("hair") == "bald"
    assert bald.any() and (table.column("long_hair")[bald] == "0").all()
    assert abs((table.column("beard") == "none").mean() - 0.56) < 0.15
    ratios = table.column("face_ratio").astype(float)
    assert 0.9 < ratios.min() < ratios.max() < 1.8
    holes = SyntheticFaces(**options, attributes=True, missing=0.3).manifest()
    for name in names:
        empty = holes.column(name) == ""
        assert 0.2 < empty.mean() < 0.4 and (holes.column(name) == table.column(name))[~empty].all()


def test_who_is_said_to_wear_glasses_wears_them():
    """Their two rims are the only shapes with a hole."""
    for identity in range(60):
        person = build_person(3, identity)
        rims = sum(len(shape.contours) == 2 for shape in person.sheet.shapes)
        assert rims == 2 * int(person.look["glasses"])


def test_the_mask_is_where_the_person_hides_the_ground():
    people = SyntheticPedestrians(identities=12, images=3, size=(64, 32), attributes=True)
    shares = []
    for path, mask in zip(people.paths(), people.manifest().column("mask"), strict=True):
        assert mask in people and mask != path
        pixels = people.read(mask)
        assert pixels.shape == people.read(path).shape and set(np.unique(pixels)) <= {0, 255}
        shares.append((pixels[:, :, 0] == 255).mean())
        assert (pixels == people.read(mask)).all()
    assert min(shares) > 0.05 and max(shares) < 0.6
    assert "nobody/mask" not in people


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attributes": True, "missing": 1.0}, "missing must be a share"),
        ({"missing": 0.5}, "missing is for the cells of attributes"),
    ],
)
def test_shares_of_missing_cells_that_make_no_sense(options, message):
    with pytest.raises(InputError, match=message):
        SyntheticPedestrians(**options)


@pytest.mark.parametrize("alike", [0, 3, 8])
def test_members_of_a_family_share_so_many_parts_and_never_all(alike):
    everybodys = {"head", "hair", "eyes", "nose", "mouth", "brows"}
    for number in range(60):
        owners = part_owners(4, number, 20, alike)
        common = {part for part, owner in owners.items() if owner != number}
        assert len(owners) == 9
        assert len(common) == alike
        assert everybodys - common
        assert {owners[part] for part in common} <= {(1 << 40) + number // 20}


def test_families_look_alike():
    """Mean colours of the same place in portraits without noise: nearer in a family than among strangers."""

    def distances(family):
        source = SyntheticFaces(identities=60, images=6, size=(56, 56), family=family, alike=8)
        pictures = read_all(source).reshape(60, 6, -1).astype(float).mean(1)
        apart = np.linalg.norm(pictures[:, None] - pictures[None], axis=-1)
        same = np.arange(60)[:, None] // 20 == np.arange(60)[None] // 20
        np.fill_diagonal(same, False)
        return apart[same].mean() / apart[np.arange(60)[:, None] // 20 != np.arange(60)[None] // 20].mean()

    assert distances(20) < 0.9
    assert distances(1) > 0.95


def test_a_family_has_paths_and_names_of_its_own():
    source, plain = SyntheticFaces(identities=3, images=2, family=2), SyntheticFaces(identities=3, images=2)
    assert not set(source.paths()) & set(plain.paths())
    names = [set(data.manifest().table["identity"].to_pylist()) for data in (source, plain)]
    assert not names[0] & names[1]
    assert source.paths()[0] == "face-v1/s0f2a6/112x112/000000/0000"
    assert (source.draw(0, 0) != plain.draw(0, 0)).any()
    with pytest.raises(InputError, match="alike must be a whole number from 0 to 8"):
        SyntheticFaces(alike=9)
    with pytest.raises(InputError, match="family"):
        SyntheticFaces(family=0)
