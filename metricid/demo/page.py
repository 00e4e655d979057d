"""The page itself, built of gradio's components."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from metricid.demo import markup
from metricid.demo.photos import Photo
from metricid.demo.studio import Look, Studio
from metricid.demo.style import STYLE
from metricid.demo.uploads import Uploads
from metricid.errors import InputError

LARGEST_UPLOAD = 20 * 2**20
_HOUR = 3600  # seconds after which the vector of a photo is forgotten
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO = ("ui-monospace", "Consolas", "monospace")
_START = "Drop a photo, and see who is nearest."
_TWO = "Give two photos, and see whether they show one person."


def build_app(studio: Studio, *, top: int) -> Any:
    """The page as an ASGI application.

    Args:
        studio: what it shows.
        top: images found at first; the reader can change it.
    """
    import fastapi
    import gradio

    theme = gradio.themes.Default(font=_FONTS, font_mono=_MONO)
    app = fastapi.FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    return gradio.mount_gradio_app(
        app,
        _blocks(gradio, studio, top),
        path="/",
        app_kwargs={"openapi_url": None, "docs_url": None, "redoc_url": None},
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=LARGEST_UPLOAD,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        theme=theme,
        css=STYLE,
    )


def _blocks(gradio: Any, studio: Studio, top: int) -> Any:
    """The layout, and what happens when something in it changes."""
    rates = studio.rates
    start, uploads = rates.start(), Uploads()
    low = min(0.0, float(rates.table.levels[0]))
    with gradio.Blocks(
        title=f"metricid: {studio.name}", analytics_enabled=False, delete_cache=(60, 300)
    ) as blocks:
        gradio.HTML(_head(studio), padding=False)
        with gradio.Group(elem_id="threshold-box"):
            threshold = gradio.Slider(
                round(low, 3), 1.0, value=start, step=0.001, label="Threshold", elem_id="threshold"
            )
            with gradio.Row(elem_id="presets"):
                presets = [
                    (gradio.Button(f"FAR {far:g}", size="sm", min_width=60), value)
                    for far, value in rates.choices().items()
                ]
            meaning = gradio.HTML(markup.threshold_text(rates, start), elem_id="meaning", padding=True)
        with gradio.Tabs():
            with gradio.Tab("Search", id="search"):
                search = _SearchTab(gradio, studio, uploads, threshold, top)
            with gradio.Tab("Compare", id="compare"):
                compare = _CompareTab(gradio, studio, uploads, threshold)
            with gradio.Tab("Confusions", id="confusions"):
                confused = _ConfusionTab(gradio, studio, threshold)
        parts: list[_Tab] = [search, compare, confused]

        def moved(value: float, *states: Any) -> list[str]:
            return [
                markup.threshold_text(rates, value),
                *(part.show(state, value) for part, state in zip(parts, grouped(states), strict=True)),
            ]

        def grouped(states: tuple[Any, ...]) -> list[tuple[Any, ...]]:
            found, at = [], 0
            for part in parts:
                found.append(states[at : at + len(part.states)])
                at += len(part.states)
            return found

        threshold.change(
            moved,
            [threshold, *(state for part in parts for state in part.states)],
            [meaning, *(part.answer for part in parts)],
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
        )
        for button, value in presets:
            button.click(
                lambda value=value: value, None, threshold, show_progress="hidden", api_visibility="private"
            )
    return blocks


class _Tab(Protocol):
    """A tab whose answer depends on the threshold and on what the page remembers in `states`."""

    states: list[Any]
    answer: Any

    def show(self, states: tuple[Any, ...], value: float) -> str: ...


class _SearchTab:
    """One photo, and the nearest images."""

    def __init__(self, gradio: Any, studio: Studio, uploads: Uploads, threshold: Any, top: int):
        self._studio = studio
        self._look = gradio.State(None, time_to_live=_HOUR)
        with gradio.Row():
            with gradio.Column(scale=1, min_width=240):
                drop = gradio.File(label="Photo", elem_id="search-photo", height=140)
                shown = gradio.HTML("", elem_id="search-shown")
                most = min(50, studio.gallery.images)
                count = gradio.Slider(
                    1, max(2, most), value=min(top, most), step=1, label="Images shown", elem_id="top"
                )
            with gradio.Column(scale=3, min_width=300):
                self.answer = gradio.HTML(markup.hint(_START), elem_id="hits")
        self.states = [self._look]

        def given(file: str | None, value: float, k: float) -> list[Any]:
            photo, picture = receive(studio, uploads, file, "Your photo")
            if photo is None:
                return [None, None, "", picture]
            look = studio.look(photo.vector, int(k))
            return [None, look, picture, self.show((look,), value)]

        def again(look: Look | None, value: float, k: float) -> list[Any]:
            look = None if look is None else studio.look(look.vector, int(k))
            return [look, self.show((look,), value)]

        drop.upload(
            given,
            [drop, threshold, count],
            [drop, self._look, shown, self.answer],
            api_visibility="private",
        )
        count.change(
            again,
            [self._look, threshold, count],
            [self._look, self.answer],
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
        )

    def show(self, states: tuple[Any, ...], value: float) -> str:
        """The answer for what the page remembers."""
        look: Look | None = states[0]
        return markup.hint(_START) if look is None else markup.hits(look, self._studio, value)


class _CompareTab:
    """Two photos, and whether they show one person."""

    def __init__(self, gradio: Any, studio: Studio, uploads: Uploads, threshold: Any):
        self._studio, self._uploads = studio, uploads
        self.states = [gradio.State(None, time_to_live=_HOUR) for _ in range(2)]
        drops, shown = [], []
        with gradio.Row():
            for place, name in enumerate(("first", "second")):
                with gradio.Column(min_width=240):
                    drops.append(
                        gradio.File(
                            label=f"{name.capitalize()} photo", elem_id=f"compare-{place + 1}", height=140
                        )
                    )
                    shown.append(gradio.HTML("", elem_id=f"compare-shown-{place + 1}"))
        self.answer = gradio.HTML(markup.hint(_TWO), elem_id="verdict")

        def judge(value: float, *vectors: np.ndarray | None) -> str:
            return self.show(vectors, value)

        for place in range(2):
            # Judged one at a time, after a photo is remembered: where both come at once, the last sees both.
            drops[place].upload(
                self._taker(place),
                drops[place],
                [drops[place], self.states[place], shown[place]],
                api_visibility="private",
            ).then(
                judge,
                [threshold, *self.states],
                self.answer,
                show_progress="hidden",
                concurrency_id="compare",
                concurrency_limit=1,
                api_visibility="private",
            )

    def _taker(self, place: int) -> Callable[[str | None], list[Any]]:
        def given(file: str | None) -> list[Any]:
            name = ("First photo", "Second photo")[place]
            photo, picture = receive(self._studio, self._uploads, file, name)
            return [None, None if photo is None else photo.vector, picture]

        return given

    def show(self, states: tuple[Any, ...], value: float) -> str:
        """The answer for what the page remembers."""
        first, second = states
        if first is None or second is None:
            return markup.hint(_TWO)
        return markup.verdict(self._studio.compare(first, second), self._studio, value)


class _ConfusionTab:
    """Pairs of identities that are taken for each other."""

    def __init__(self, gradio: Any, studio: Studio, threshold: Any):
        self._studio = studio
        pairs = studio.confusions.pairs
        gradio.HTML(markup.confusions_text(studio.confusions))
        names = [(f"{n}. {markup.confusion_name(pair)}", n - 1) for n, pair in enumerate(pairs, 1)]
        choice = gradio.Dropdown(
            names,
            value=0 if pairs else None,
            label="Pair",
            elem_id="pair",
            visible=bool(pairs),
            filterable=False,
        )
        with gradio.Row(visible=bool(pairs)):
            before = gradio.Button("Previous", size="sm", min_width=80)
            after = gradio.Button("Next", size="sm", min_width=80, elem_id="next-pair")
        self.answer = gradio.HTML(
            self.show((0 if pairs else None,), studio.rates.start()), elem_id="confused"
        )
        self.states = [choice]
        choice.change(
            lambda place, value: self.show((place,), value),
            [choice, threshold],
            self.answer,
            show_progress="hidden",
            api_visibility="private",
        )
        for button, step in ((before, -1), (after, 1)):
            button.click(
                lambda place, step=step: (place + step) % len(pairs),
                choice,
                choice,
                show_progress="hidden",
                api_visibility="private",
            )

    def show(self, states: tuple[Any, ...], value: float) -> str:
        """The answer for what is chosen."""
        place = states[0]
        return (
            ""
            if place is None
            else markup.confusion(self._studio.confusions.pairs[place], self._studio, value)
        )


def receive(studio: Studio, uploads: Uploads, file: str | None, text: str) -> tuple[Photo | None, str]:
    """Reads an uploaded file and deletes it at once.

    Args:
        studio: what embeds it.
        uploads: what reads it.
        file: where the framework put it.
        text: what the page calls it.

    Returns:
        The photo and its picture for the page, or None and what is wrong.
    """
    if file is None:
        return None, markup.problem("No file arrived; try again.")
    try:
        data = uploads.take(file)
    except OSError:
        return None, markup.problem("The file did not arrive; try again.")
    try:
        photo = studio.photo(data)
    except InputError as error:
        line = str(error)
        return None, markup.problem(line[:1].upper() + line[1:])
    return photo, markup.photo(photo.image, photo.note, text)


def _head(studio: Studio) -> str:
    return str(
        markup.Markup(
            '<header class="m-title"><h1>{}</h1><p>Searches {}. Photos are not stored: they stay in the '
            "memory of this server until it ends.</p></header>"
        ).format(studio.name, studio.gallery.name)
    )
