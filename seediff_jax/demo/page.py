"""The page of the demo, in Gradio: controls on the left, image, mask and stages on the right."""

import base64
import html
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from seediff_jax.dataset.pictures import fit
from seediff_jax.dataset.png import encode_png
from seediff_jax.demo.studio import Result, Sampled, Studio
from seediff_jax.errors import UserError, shown
from seediff_jax.masks.config import METHODS, REFINED_THRESHOLD, MaskConfig
from seediff_jax.sampling.config import SamplingConfig

GUIDANCE = SamplingConfig().guidance_scale
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
CSS = """
#message textarea { color: var(--error-text-color, #b00020); }
.figures { display: flex; flex-wrap: wrap; gap: 10px; padding-top: 26px; }
.figures figure { margin: 0; width: min(192px, 47%); }
.figures img { width: 100%; }
.figures figcaption { font-size: small; }
"""


def make_page(studio: Studio, prompt: str, num_steps: int) -> gr.Blocks:
    """Builds the page.

    Args:
        studio: makes what it shows.
        prompt: that the page opens with.
        num_steps: likewise.
    """
    folder = tempfile.TemporaryDirectory(prefix="seediff_demo_")  # goes with the page
    model = shown(studio.source.model, 200)
    with gr.Blocks(title="SeeDiff", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# SeeDiff\nText prompt in, image and pixel mask out. Model: `{model}`")
        sampled = gr.State(None, time_to_live=3600)
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                asked = [
                    gr.Textbox(prompt, label="Prompt", elem_id="prompt"),
                    gr.Textbox(
                        "",
                        label="Classes",
                        info="Separated by commas; blank finds them in the prompt.",
                        elem_id="classes",
                    ),
                    gr.Number(0, label="Seed", precision=0, elem_id="seed"),
                    gr.Slider(1, 100, num_steps, step=1, label="Steps", elem_id="steps"),
                    gr.Slider(0, 20, GUIDANCE, step=0.5, label="Guidance", elem_id="guidance"),
                ]
                make = gr.Button("Make the image", variant="primary", elem_id="make")
                gr.Markdown("### Mask\nThese settings change the mask at once; the image stays.")
                method = gr.Radio([*METHODS], value="seediff", label="Method", elem_id="method")
                threshold = gr.Slider(
                    0,
                    1,
                    METHODS["seediff"].published.threshold,
                    step=0.01,
                    label="Threshold",
                    elem_id="threshold",
                )
                refine = gr.Slider(0, 20, 0, step=1, label="Refinement steps", elem_id="refine")
                refined = gr.Slider(
                    0,
                    1,
                    REFINED_THRESHOLD,
                    step=0.01,
                    label="Threshold after refinement",
                    elem_id="refined",
                    visible=False,
                )
            with gr.Column(scale=2, min_width=320):
                message = gr.Textbox(
                    label="Message", visible=False, elem_id="message", interactive=False
                )
                with gr.Row():
                    image = gr.Image(label="Image", format="png", elem_id="image", buttons=[])
                    overlay = gr.Image(label="Mask", format="png", elem_id="overlay", buttons=[])
                summary = gr.Textbox(label="Classes found", elem_id="summary", interactive=False)
                stages = gr.HTML(
                    label="How the mask came about",
                    show_label=True,
                    container=True,
                    elem_id="stages",
                )
                command = gr.Textbox(
                    label="The same on the command line",
                    elem_id="command",
                    interactive=False,
                    buttons=["copy"],
                )
                download = gr.DownloadButton(
                    "Download image, mask and settings", elem_id="download", interactive=False
                )
        results = [message, image, overlay, summary, stages, command, download]
        settings = [method, threshold, refine, refined]

        def sample(state: Sampled | None, *values: Any) -> list[Any]:
            *request, method, threshold, refine, refined = values
            try:
                text, classes, seed, steps, guidance = request
                options = {"num_steps": steps, "guidance_scale": guidance}
                state = studio.sample(text, classes, seed, options)
                return [state, *show(state, method, threshold, refine, refined)]
            except (UserError, FloatingPointError) as error:
                return [state, *_failed(error)]

        def show(state: Sampled | None, *values: Any) -> list[Any]:
            if state is None:
                return [gr.skip() for _ in results]
            try:
                return _shown(studio.mask(state, _mask_config(*values)), folder.name)
            except UserError as error:
                return _failed(error)

        def choose_method(method: str) -> Any:
            return METHODS[method].published.threshold

        common = {"outputs": results, "api_visibility": "private", "show_progress": "minimal"}
        common |= {"concurrency_id": "masks", "trigger_mode": "always_last"}
        gr.on(
            [make.click, *(text.submit for text in asked[:2])],
            sample,
            [sampled, *asked, *settings],
            [sampled, *results],
            concurrency_limit=1,
            api_visibility="private",
        )
        for control in settings:
            control.change(show, [sampled, *settings], **common)
        method.input(choose_method, method, threshold, api_visibility="private")
        refine.change(
            lambda count: gr.update(visible=count > 0), refine, refined, api_visibility="private"
        )
    return page


def figures(stages: Iterable[tuple[str, np.ndarray]]) -> str:
    """Writes captioned pictures as HTML, which wraps on narrow screens and cuts no caption."""
    parts = []
    for caption, picture in stages:
        content = base64.b64encode(encode_png(np.asarray(fit(picture, 192)))).decode()
        text = html.escape(caption)
        parts.append(
            f'<figure><img src="data:image/png;base64,{content}" alt="{text}">'
            f"<figcaption>{text}</figcaption></figure>"
        )
    return f'<div class="figures">{"".join(parts)}</div>'


def _mask_config(method: str, threshold: float, refine: int, refined: float) -> MaskConfig:
    """Reads the controls; a published threshold is passed as None, as in a run without one."""
    is_published = threshold == METHODS[method].published.threshold
    more = {"refine_iterations": refine, "refined_threshold": refined} if refine else {}
    return MaskConfig(method=method, threshold=None if is_published else threshold, **more)


def _shown(result: Result, folder: str) -> list[Any]:
    path = Path(tempfile.mkdtemp(dir=folder)) / "seediff.zip"
    path.write_bytes(result.archive)
    return [
        gr.update(value="", visible=False),
        result.image,
        result.overlay,
        result.summary,
        figures(result.stages),
        result.command,
        gr.update(value=str(path), interactive=True),
    ]


def _failed(error: Exception) -> list[Any]:
    """One line in the page; what was shown before stays."""
    line = gr.update(value=shown(str(error)), visible=True)
    return [line, *(gr.skip() for _ in range(6))]
