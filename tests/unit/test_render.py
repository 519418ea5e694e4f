from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from pgdefect.pictures import contact_sheet as sheets
from pgdefect.pictures import render
from pgdefect.pictures.contact_sheet import SheetQuery, SheetTile, contact_sheet, inspection_panel
from pgdefect.pictures.render import overlay

ORANGE = render.LABEL_COLORS["anomalous"]
BLUE = render.LABEL_COLORS["normal"]


def solid(color: tuple[int, int, int], shape: tuple[int, int] = (60, 60)) -> np.ndarray:
    return np.full((*shape, 3), color, dtype=np.uint8)


def constant_map(score: float, shape: tuple[int, int] = (60, 60)) -> np.ndarray:
    return np.full(shape, score, dtype=np.float32)


def blob_map(shape: tuple[int, int] = (60, 60)) -> np.ndarray:
    scores = np.zeros(shape, dtype=np.float32)
    scores[20:40, 15:45] = 1.6
    return scores


def bounds_of(picture: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    rows, cols = np.nonzero((np.asarray(picture) == color).all(axis=2))
    assert rows.size, f"no pixel of color {color}"
    return int(cols.min()), int(rows.min()), int(cols.max()), int(rows.max())


def palette(count: int) -> list[tuple[int, int, int]]:
    return [(3 + 7 * i, 250 - 9 * i, 40 + (53 * i) % 200) for i in range(count)]


def tiles(count: int, **changes: object) -> list[SheetTile]:
    fields: dict[str, object] = {"label": "normal", "category": "leather"}
    fields.update(changes)
    return [
        SheetTile(rank=i + 1, distance=0.01 * i, path=f"a/b/{i}.png", image=solid(color), **fields)
        for i, color in enumerate(palette(count))
    ]


QUERY = SheetQuery("part.png", solid((90, 90, 90)), blob_map(), "leather", score=1.6, threshold=1.0)


class TestOverlay:
    def test_a_calm_map_shows_the_plain_gray_image(self) -> None:
        image = solid((200, 40, 90))
        gray = np.asarray(Image.fromarray(image).convert("L").convert("RGB"))
        for score in (0.0, 0.3, 0.5):
            shown = overlay(image, constant_map(score), threshold=1.0)
            np.testing.assert_array_equal(shown, gray)

    def test_a_score_well_below_the_threshold_barely_tints(self) -> None:
        shown = overlay(solid((120, 120, 120)), constant_map(0.7), threshold=1.0).astype(int)
        assert np.abs(shown - 120).max() <= 8

    def test_a_high_score_glows_warm(self) -> None:
        inner = overlay(solid((60, 60, 60)), blob_map(), threshold=1.0)[30, 30].astype(int)
        assert inner[0] > 150
        assert inner[0] > inner[1] + 60
        assert inner[0] > inner[2] + 100

    def test_opacity_at_the_threshold_and_at_the_top(self) -> None:
        def opacity(score: float) -> float:
            dark, light = (
                overlay(solid((v, v, v)), constant_map(score), threshold=1.0)[30, 30].astype(int)
                for v in (0, 200)
            )
            return 1 - float((light - dark).mean()) / 200

        assert opacity(1.0) == pytest.approx(0.35, abs=0.01)
        assert opacity(2.5) == pytest.approx(0.8, abs=0.01)
        assert opacity(99.0) == pytest.approx(0.8, abs=0.01)

    def test_brightness_rises_with_the_score_on_a_dark_image(self) -> None:
        scores = np.tile(np.linspace(0.5, 2.5, 60, dtype=np.float32), (60, 1))
        shown = overlay(solid((0, 0, 0)), scores, threshold=1.0)
        contour = render.contour(scores >= 1.0)
        luma = (shown[30] @ np.array([0.299, 0.587, 0.114]))[~contour[30]]
        assert (np.diff(luma) > -1).all()
        assert luma[-1] > 150

    def test_the_scale_does_not_depend_on_the_map_at_hand(self) -> None:
        image, scores = solid((80, 80, 80)), constant_map(0.8)
        alone = overlay(image, scores, threshold=1.0)
        scores[:5, :5] = 50.0
        assert (overlay(image, scores, threshold=1.0)[30, 30] == alone[30, 30]).all()

    def test_vmax_moves_the_top(self) -> None:
        image = solid((0, 0, 0))
        early = overlay(image, constant_map(1.5), threshold=1.0, vmax=1.5)[30, 30]
        late = overlay(image, constant_map(4.0), threshold=1.0, vmax=4.0)[30, 30]
        assert (early == late).all()

    def test_the_contour_encloses_the_region_at_or_above_the_threshold_only(self) -> None:
        scores = blob_map()
        scores[50:55, 50:55] = 0.99
        shown = overlay(solid((60, 60, 60)), scores, threshold=1.0)
        drawn = (shown == render.CONTOUR).all(axis=2)
        expected = np.zeros_like(drawn)
        expected[20:40, 15:45] = True
        expected[21:39, 16:44] = False
        np.testing.assert_array_equal(drawn, expected)

    def test_a_region_at_the_border_is_closed(self) -> None:
        rim = render.contour(np.ones((5, 7), dtype=bool))
        assert rim.sum() == 2 * 7 + 2 * 3

    def test_the_worst_box_surrounds_its_content(self) -> None:
        image = solid((60, 60, 60))
        shown = overlay(image, constant_map(0), threshold=1.0, worst_box=(20, 30, 6, 4))
        assert (shown[30:34, 20:26] == 60).all()
        assert (shown[29, 19:27] == 255).all()
        assert (shown[28, 18:28] == 0).all()
        changed = (shown != 60).any(axis=2)
        changed[28:36, 18:28] = False
        assert not changed.any()

    @pytest.mark.parametrize("box", [(-5, -5, 8, 8), (58, 58, 9, 9), (0, 0, 60, 60), (80, 9, 4, 4)])
    def test_a_worst_box_over_the_edge_is_clipped(self, box: tuple[int, int, int, int]) -> None:
        shown = overlay(solid((60, 60, 60)), constant_map(0), threshold=1.0, worst_box=box)
        assert shown.shape == (60, 60, 3)

    def test_inputs_stay_untouched(self) -> None:
        image, scores = solid((60, 70, 80)), blob_map()
        overlay(image, scores, threshold=1.0, worst_box=(1, 1, 5, 5))
        assert (image == (60, 70, 80)).all()
        np.testing.assert_array_equal(scores, blob_map())

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"threshold": 0.0}, "positive"),
            ({"threshold": float("nan")}, "positive"),
            ({"vmax": 1.0}, "above the threshold"),
            ({"anomaly_map": constant_map(0, (60, 59))}, "resize the map"),
            ({"anomaly_map": constant_map(np.nan)}, "not finite"),
            ({"image": np.zeros((60, 60), dtype=np.uint8)}, "height, width, 3"),
            ({"image": np.zeros((60, 60, 3), dtype=np.float32)}, "uint8"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, change: dict[str, object], message: str) -> None:
        given = {"image": solid((1, 1, 1)), "anomaly_map": blob_map(), "threshold": 1.0, **change}
        with pytest.raises(ValueError, match=message):
            overlay(**given)  # type: ignore[arg-type]


class TestScaling:
    def test_a_small_peak_survives_shrinking(self) -> None:
        scores = constant_map(0.1, (2000, 3000))
        scores[1203, 777] = 5.0
        small = render.resize_map(scores, (300, 200))
        assert small.shape == (200, 300)
        assert small.max() == 5.0
        assert np.unravel_index(small.argmax(), small.shape) == (120, 77)

    @pytest.mark.parametrize("shape", [(1, 1), (3, 900), (900, 3), (7, 5), (1500, 2100)])
    def test_any_aspect_fits(self, shape: tuple[int, int]) -> None:
        shown = render.fitted_overlay(
            solid((60, 60, 60), shape),
            constant_map(2.0, shape),
            (200, 150),
            threshold=1.0,
            worst_box=(0, 0, 1, 1),
        )
        assert shown.shape[0] <= 150
        assert shown.shape[1] <= 200
        assert shown.shape[0] == 150 or shown.shape[1] == 200

    def test_the_worst_box_moves_with_the_image(self) -> None:
        shown = render.fitted_overlay(
            solid((60, 60, 60), (100, 100)),
            constant_map(0, (100, 100)),
            (200, 200),
            threshold=1.0,
            worst_box=(50, 20, 10, 10),
        )
        rows, cols = np.nonzero((shown == 255).all(axis=2))
        assert (cols.min(), rows.min(), cols.max(), rows.max()) == (99, 39, 120, 60)


class TestInspectionPanel:
    def test_ground_truth_adds_a_pane(self) -> None:
        image, scores = solid((90, 90, 90)), blob_map()
        two = inspection_panel(image, scores, None, title="x", threshold=1.0)
        three = inspection_panel(image, scores, scores > 1, title="x", threshold=1.0)
        assert three.height == two.height
        assert three.width == two.width + 440 + 16
        left, _, right, _ = bounds_of(three, render.TRUTH)
        assert left > two.width - 24
        assert right < three.width - 24

    @pytest.mark.parametrize(
        ("score", "verdict", "color"),
        [
            (1.0, None, ORANGE),
            (0.99, None, BLUE),
            (0.2, "anomalous", ORANGE),
            (None, "normal", BLUE),
        ],
    )
    def test_the_verdict_chip(
        self, score: float | None, verdict: str | None, color: tuple[int, int, int]
    ) -> None:
        panel = inspection_panel(
            solid((9, 9, 9)), constant_map(0), title="x", threshold=1, score=score, verdict=verdict
        )
        left, top, right, bottom = bounds_of(panel, color)
        assert left > panel.width / 2
        assert right < panel.width
        assert top >= 0
        assert bottom < 84

    def test_no_verdict_without_a_score(self) -> None:
        panel = inspection_panel(solid((9, 9, 9)), constant_map(0), title="x", threshold=1.0)
        pixels = np.asarray(panel)
        assert not (pixels == ORANGE).all(axis=2).any()
        assert not (pixels == BLUE).all(axis=2).any()

    def test_text_stays_inside_the_margins(self) -> None:
        panel = inspection_panel(
            solid((9, 9, 9)),
            constant_map(0),
            title="W" * 300,
            threshold=123456.0,
            score=0.0001,
            pane=220,
        )
        strip = np.asarray(panel)[:41]
        assert (strip[:, :11] == 255).all()
        assert (strip[:, -11:] == 255).all()

    @pytest.mark.parametrize("shape", [(2, 1500), (1500, 2), (1, 1)])
    def test_odd_aspects(self, shape: tuple[int, int]) -> None:
        mask = np.zeros(shape, dtype=bool)
        panel = inspection_panel(
            solid((9, 9, 9), shape), constant_map(0, shape), mask, title="日", threshold=1.0
        )
        assert panel.mode == "RGB"

    def test_a_mask_of_another_size_is_refused(self) -> None:
        with pytest.raises(ValueError, match="must agree"):
            inspection_panel(
                solid((9, 9, 9)), constant_map(0), np.ones((3, 3), bool), title="x", threshold=1.0
            )


class TestContactSheet:
    @pytest.mark.parametrize(("count", "rows"), [(1, 1), (5, 1), (6, 2), (10, 2), (23, 5)])
    def test_each_neighbor_is_in_its_place(self, count: int, rows: int) -> None:
        sheet = contact_sheet(QUERY, tiles(count))
        assert sheet.width == 1400
        boxes = [bounds_of(sheet, color) for color in palette(count)]
        for index, (left, top, right, bottom) in enumerate(boxes):
            row, column = divmod(index, 5)
            assert 200 < right - left < 280
            assert abs((right - left) - (bottom - top)) <= 1
            assert left == boxes[column][0]
            assert top == boxes[5 * row][1]
            assert (
                np.asarray(sheet)[top : bottom + 1, left : right + 1] == palette(count)[index]
            ).all()
        assert all(a[2] < b[0] for a, b in pairwise(boxes[:5]))
        assert len({box[1] for box in boxes}) == rows
        assert boxes[-1][3] + 100 < sheet.height

    def test_the_query_and_its_overlay_stand_above(self) -> None:
        sheet = contact_sheet(QUERY, tiles(1))
        _, _, _, query_bottom = bounds_of(sheet, (90, 90, 90))
        _, _, _, contour_bottom = bounds_of(sheet, render.CONTOUR)
        _, neighbor_top, _, _ = bounds_of(sheet, palette(1)[0])
        assert query_bottom < neighbor_top
        assert contour_bottom < neighbor_top

    def test_the_frame_tells_the_label(self) -> None:
        quiet = SheetQuery("q", None)
        for label, color in [("normal", BLUE), ("anomalous", ORANGE), (None, render.UNKNOWN)]:
            sheet = contact_sheet(quiet, tiles(1, label=label))
            left, top, _, bottom = bounds_of(sheet, palette(1)[0])
            assert (np.asarray(sheet)[top:bottom, left - 5] == color).all()

    def test_a_label_nobody_knows_is_gray(self) -> None:
        assert render.label_color("strange") == render.UNKNOWN

    def test_a_missing_file_is_said_in_its_tile(self) -> None:
        there = tiles(3)
        gone = [there[0], SheetTile(2, 0.5, "a/gone.png", None, "normal"), there[2]]
        with_gap, whole = contact_sheet(QUERY, gone), contact_sheet(QUERY, there)
        assert with_gap.size == whole.size
        left, top, right, bottom = bounds_of(whole, palette(3)[1])
        well = np.asarray(with_gap)[top : bottom + 1, left : right + 1]
        share = (well == render.WELL).all(axis=2).mean()
        assert 0.9 < share < 0.999
        assert bounds_of(with_gap, palette(3)[2]) == bounds_of(whole, palette(3)[2])

    def test_no_neighbors(self) -> None:
        sheet = contact_sheet(QUERY, [])
        assert sheet.width == 1400
        assert sheet.height < contact_sheet(QUERY, tiles(1)).height

    def test_a_bare_query(self) -> None:
        sheet = contact_sheet(SheetQuery("gone.png", None), tiles(2))
        assert bounds_of(sheet, render.UNKNOWN)

    def test_a_query_without_map(self) -> None:
        sheet = contact_sheet(SheetQuery("q.png", solid((1, 200, 3))), [])
        left, top, right, bottom = bounds_of(sheet, (1, 200, 3))
        assert (right - left, bottom - top) == (399, 399)

    def test_many_facts_make_room_for_themselves(self) -> None:
        facts = [(f"fact {i}", "value") for i in range(20)]
        query = SheetQuery("q.png", solid((1, 200, 3)), threshold=1.0, score=2.0, facts=facts)
        sheet = contact_sheet(query, tiles(1))
        plain = contact_sheet(SheetQuery("q.png", solid((1, 200, 3))), tiles(1))
        assert sheet.height > plain.height + 300

    def test_the_aspect_is_kept(self) -> None:
        color = (11, 222, 33)
        tile = SheetTile(1, 0.1, "x.png", solid(color, (50, 200)))
        left, top, right, bottom = bounds_of(contact_sheet(QUERY, [tile]), color)
        assert (right - left + 1) / (bottom - top + 1) == pytest.approx(4, rel=0.03)

    @pytest.mark.parametrize("shape", [(1, 1), (2, 3000), (3000, 2), (2500, 2500)])
    def test_odd_sizes(self, shape: tuple[int, int]) -> None:
        tile = SheetTile(1, 0.1, "x.png", solid((11, 222, 33), shape))
        sheet = contact_sheet(QUERY, [tile])
        assert sheet.size == contact_sheet(QUERY, tiles(1)).size
        assert bounds_of(sheet, (11, 222, 33))

    def test_names_in_any_script(self) -> None:
        names = ["日本語/部品.png", "größe.png", "\udce9.png", "", "a\nb", "x" * 4000]
        neighbors = [
            SheetTile(i + 1, float("inf"), name, None, name, name, name)
            for i, name in enumerate(names)
        ]
        query = SheetQuery(names[0], None, category=names[1], facts=[(names[2], names[5])])
        assert contact_sheet(query, neighbors).width == 1400

    def test_text_stays_inside_the_margins(self) -> None:
        wide = "W" * 200
        query = SheetQuery(wide, None, category=wide, verdict=wide, facts=[(wide, wide)])
        neighbors = tiles(5, defect_type=wide, category=wide, label=wide)
        pixels = np.asarray(contact_sheet(query, neighbors))
        assert (pixels[:, :36] == 255).all()
        assert (pixels[:, -36:] == 255).all()

    @pytest.mark.parametrize(
        ("path", "shown"),
        [
            ("part.png", "part.png"),
            ("test/good/0.png", "test/good/0.png"),
            ("/data/plates/line_4/test/scratch/0.png", "…/scratch/0.png"),
            ("/data/a_folder_with_a_long_name/another.png", "…/another.png"),
        ],
    )
    def test_a_path_is_shortened_from_its_front(self, path: str, shown: str) -> None:
        assert sheets._short_path(path, lambda short: len(short) <= 20) == shown

    @pytest.mark.parametrize("width", [700, 1400, 2800])
    def test_the_sheet_scales_with_its_width(self, width: int) -> None:
        sheet = contact_sheet(QUERY, tiles(7), width=width)
        left, _, right, _ = bounds_of(sheet, palette(7)[0])
        assert sheet.width == width
        assert (right - left) / width == pytest.approx(237 / 1400, abs=0.01)

    def test_too_narrow_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least 700"):
            contact_sheet(QUERY, [], width=sheets.MIN_WIDTH - 1)


class TestSavePng:
    def test_round_trip_into_a_new_folder(self, tmp_path) -> None:
        path = render.save_png(solid((1, 2, 3)), tmp_path / "new" / "a.png")
        with Image.open(path) as saved:
            assert (np.asarray(saved) == (1, 2, 3)).all()
        assert [p.name for p in path.parent.iterdir()] == ["a.png"]

    def test_an_existing_file_is_replaced(self, tmp_path) -> None:
        path = tmp_path / "a.png"
        path.write_bytes(b"old")
        render.save_png(Image.new("RGB", (4, 4)), path)
        assert path.read_bytes().startswith(b"\x89PNG")

    def test_a_failed_write_leaves_the_old_file_and_nothing_else(self, tmp_path) -> None:
        path = tmp_path / "a.png"
        path.write_bytes(b"old")
        with pytest.raises(OSError, match="cannot write mode"):
            render.save_png(Image.new("HSV", (4, 4)), path)
        assert path.read_bytes() == b"old"
        assert list(tmp_path.iterdir()) == [path]
