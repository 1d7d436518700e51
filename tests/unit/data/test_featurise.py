"""The built-in featurisers: same value, same vector; what looks, reads or is alike is near."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from training.data.featurise import CategoryFeaturiser, HashedText, ImageDescriptor, image_batches, text_batches
from training.data.featurise.batches import PictureError


def picture(pattern="stripes", ink=(200, 30, 30), paper=(250, 250, 240), side=96, shift=0):
    image = Image.new("RGB", (side, side), paper)
    draw = ImageDraw.Draw(image)
    step = side // 6
    for i in range(-1, 7):
        if pattern == "stripes":
            draw.rectangle([0, i * step + shift, side, i * step + shift + step // 2], fill=ink)
        elif pattern == "columns":
            draw.rectangle([i * step + shift, 0, i * step + shift + step // 2, side], fill=ink)
        else:
            for j in range(-1, 7):
                x, y = i * step + shift, j * step + shift
                draw.ellipse([x, y, x + 0.8 * step, y + 0.8 * step], fill=ink)
    return image


class TestImageDescriptor:
    def test_rows_have_length_one_and_the_width_that_it_says(self):
        rows = ImageDescriptor()([picture("stripes"), picture("dots")])
        assert rows.shape == (2, ImageDescriptor.dim)
        assert 128 <= ImageDescriptor.dim <= 256
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)

    def test_a_picture_has_one_vector_whatever_the_batch(self):
        describe = ImageDescriptor()
        one, other = picture("stripes"), picture("dots", ink=(0, 90, 160))
        np.testing.assert_array_equal(describe([one, other])[1], describe([other])[0])

    def test_no_pictures_give_no_rows(self):
        assert ImageDescriptor()([]).shape == (0, ImageDescriptor.dim)

    @pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
    def test_pictures_of_every_mode_are_taken(self, mode):
        assert np.isfinite(ImageDescriptor()([picture().convert(mode)])).all()

    @pytest.mark.parametrize("size", [(1, 1), (500, 20), (64, 64)])
    @pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (10, 200, 90)])
    def test_flat_pictures_of_any_size_have_a_finite_vector_that_is_not_zero(self, size, colour):
        (row,) = ImageDescriptor()([Image.new("RGB", size, colour)])
        assert np.linalg.norm(row) == pytest.approx(1, abs=1e-6)

    def test_a_larger_copy_is_almost_the_same(self):
        small, large = ImageDescriptor()([picture(side=96), picture(side=96).resize((384, 384))])
        assert small @ large > 0.98

    @pytest.mark.parametrize(
        "other",
        [
            picture("dots"),
            picture("columns"),
            picture("stripes", ink=(20, 60, 210)),
            picture("stripes", paper=(20, 20, 30)),
        ],
        ids=["another pattern", "another direction", "another colour", "another ground"],
    )
    def test_a_shifted_copy_is_nearer_than_a_picture_of_another_kind(self, other):
        original, shifted, different = ImageDescriptor()([picture(), picture(shift=3), other])
        assert original @ shifted > original @ different + 0.1


class TestHashedText:
    def test_rows_have_length_one_and_the_width_that_it_says(self):
        rows = HashedText()(["a red fox", "The lighthouse"])
        assert rows.shape == (2, HashedText.dim)
        assert rows.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)

    @pytest.mark.parametrize("text", ["", "   ", "?!,.", "the of and"])
    def test_a_text_without_words_gives_zeros(self, text):
        assert not HashedText()([text, "word"])[0].any()

    def test_a_text_has_one_vector_whatever_the_batch_and_the_process(self):
        featurise = HashedText()
        np.testing.assert_array_equal(featurise(["other", "red fox"])[1], featurise(["red fox"])[0])
        # A literal, so that a change of the hash is seen: it would make old and new vectors incomparable.
        (row,) = featurise(["red fox"])
        assert np.flatnonzero(np.abs(row) > 0.2).tolist() == RED_FOX

    @pytest.mark.parametrize(
        ("near", "far"),
        [
            ("a lighthouse by the harbour", "a sourdough from the bakery"),
            ("lighthouses", "croissant"),
            ("LIGHTHOUSE!", "Lightweight"),
        ],
    )
    def test_what_shares_words_or_stems_is_near(self, near, far):
        anchor, near_row, far_row = HashedText()(["the lighthouse", near, far])
        assert anchor @ near_row > anchor @ far_row + 0.2

    def test_unrelated_texts_are_nearly_orthogonal(self):
        rng = np.random.default_rng(0)
        letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
        texts = [" ".join("".join(rng.choice(letters, 8)) for _ in range(12)) for _ in range(80)]
        rows = HashedText()(texts)
        cosines = (rows @ rows.T)[np.triu_indices(80, 1)]
        assert abs(cosines.mean()) < 0.02
        assert cosines.std() < 1.5 / np.sqrt(HashedText.dim)

    def test_repeating_a_word_counts_less_and_less(self):
        fox, once, often = HashedText()(["fox", "fox hen", "fox fox fox fox fox fox hen"])
        assert fox @ once < fox @ often < 0.98

    def test_every_script_is_read(self):
        rows = HashedText()(["море и корабль", "море и маяк", "灯台 港", "crème brûlée"])
        assert rows.any(axis=1).all()
        assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.2


class TestCategories:
    def test_categories_are_multi_hot_rows_of_length_one(self):
        category = CategoryFeaturiser.fit([["b", "a"], ["a"], [], ["c", "c"]])
        assert category.vocabulary == ("a", "b", "c")
        rows = category([["b", "a"], [], ["c", "c"], ["unheard", "a"]])
        half = np.sqrt(0.5)
        np.testing.assert_allclose(rows, [[half, half, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]], atol=1e-6)

    def test_an_item_without_a_known_category_lacks_the_modality(self):
        ((rows, present),) = CategoryFeaturiser(["a"]).batches([[["a"], [], ["b"]]])
        assert rows.shape == (3, 1)
        assert present.tolist() == [True, False, False]

    def test_the_most_frequent_categories_are_kept_when_there_are_too_many(self):
        category = CategoryFeaturiser.fit([["often"], ["often"], *([f"c{i:04d}"] for i in range(1500))])
        assert category.dim == 1024
        assert "often" in category.vocabulary


class TestBatches:
    def test_items_without_a_picture_are_not_present_and_order_is_kept(self, tmp_path, monkeypatch):
        monkeypatch.setattr("training.data.featurise.batches.BATCH_ROWS", 2)
        picture("dots").save(tmp_path / "dots.png")
        told = []
        batches = image_batches(
            [None, tmp_path / "dots.png", picture(), None, None],
            ImageDescriptor(),
            total=5,
            on_progress=lambda *progress: told.append(progress),
        )
        rows, present = zip(*batches, strict=True)
        assert [len(part) for part in rows] == [2, 2, 1]
        assert np.concatenate(present).tolist() == [False, True, True, False, False]
        expected = ImageDescriptor()([picture("dots"), picture()])
        np.testing.assert_array_equal(np.concatenate(rows)[1:3], expected)
        assert not np.concatenate(rows)[[0, 3, 4]].any()
        assert told[-1] == ("image features", 5, 5)

    @pytest.mark.parametrize("content", [b"", b"not a picture", "cut"])
    def test_a_file_that_is_no_picture_is_named(self, tmp_path, content):
        path = tmp_path / "bad.png"
        picture().save(path)
        path.write_bytes(path.read_bytes()[:200] if content == "cut" else content)
        with pytest.raises(PictureError, match=r"bad\.png: is not a readable picture"):
            list(image_batches([path], ImageDescriptor(), total=1))

    def test_an_empty_text_is_not_present(self):
        ((rows, present),) = text_batches(["fox", "", "the"], HashedText(), total=3)
        assert present.tolist() == [True, False, False]
        assert not rows[1:].any()


RED_FOX = [8, 15, 42, 63, 69, 103, 104, 128, 134, 175, 191, 209, 220, 239]
