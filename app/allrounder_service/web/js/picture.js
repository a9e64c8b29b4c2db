// Which picture is asked about: an example, a file, a dropped or a pasted one.

import { find, h, show } from "./dom.js";

const EXAMPLES = "/web/examples/";

/** `onChoice` gets {blob, url, name, source, path, alt, question}. */
export class PictureChoice {
  constructor(onChoice) {
    this.onChoice = onChoice;
    this.current = null;
    find("file").addEventListener("change", (event) => this.#take(event.target.files[0], "file"));
    document.addEventListener("paste", (event) => this.#pasted(event));
    this.#listenForDrops();
  }

  async showExamples() {
    const response = await fetch(`${EXAMPLES}examples.json`);
    const examples = await response.json();
    show(find("examples"), examples.map((example, index) => h("li", {}, this.#button(example, index))));
    return examples;
  }

  async useExample(example) {
    const path = EXAMPLES + example.file;
    const blob = await (await fetch(path)).blob();
    this.#choose({ blob, name: example.file, source: "example", path, ...example });
  }

  #button(example, index) {
    const image = h("img", { src: EXAMPLES + example.file, alt: "", loading: "lazy", width: 56, height: 56 });
    const attributes = {
      type: "button", title: example.question, "data-file": example.file, "aria-pressed": "false",
      "aria-label": `Example ${index + 1}: ${example.question}`, onclick: () => this.useExample(example),
    };
    return h("button", attributes, image);
  }

  #pasted(event) {
    const file = event.clipboardData?.files[0];
    if (!file) return;
    event.preventDefault();
    this.#take(file, "clipboard");
  }

  #listenForDrops() {
    const mark = (on) => document.body.classList.toggle("dragging", on);
    document.addEventListener("dragover", (event) => {
      if (!event.dataTransfer?.types.includes("Files")) return;
      event.preventDefault();
      mark(true);
    });
    document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) mark(false); });
    document.addEventListener("drop", (event) => {
      mark(false);
      if (!event.dataTransfer?.files.length) return;
      event.preventDefault();
      this.#take(event.dataTransfer.files[0], "file");
    });
  }

  #take(file, source) {
    if (!file) return;
    const name = source === "clipboard" ? "pasted picture" : file.name;
    this.#choose({ blob: file, name, source, alt: name });
  }

  #choose(picture) {
    if (this.current) URL.revokeObjectURL(this.current.url);
    this.current = { ...picture, url: URL.createObjectURL(picture.blob) };
    find("file").removeAttribute("aria-invalid");
    find("picture-name").textContent = picture.source === "example" ? `Example ${picture.name}` : picture.name;
    this.#showThumb();
    for (const button of find("examples").querySelectorAll("button")) {
      button.setAttribute("aria-pressed", String(picture.source === "example" && button.dataset.file === picture.name));
    }
    this.onChoice(this.current);
  }

  #showThumb() {
    const thumb = find("thumb");
    thumb.hidden = true;
    thumb.onload = () => { thumb.hidden = false; };
    thumb.onerror = () => { thumb.hidden = true; };
    thumb.src = this.current.url;
  }
}
