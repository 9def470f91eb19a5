// Chooses a square of a photo, by mouse, finger or keyboard.

const STEP = 0.02; // sides of the photo that a key moves
const LEAST = 64; // pixels of a square
const HANDLE = 24; // pixels on the screen
const MOST = 1024; // pixels of the canvas along a side: a photo of a phone has four times as many, and redraws slowly

export class Cropper {
  // `use(file, [left, top, right, bottom])` is called with pixels of the photo; [] to have the face found.
  constructor(root, use) {
    this.root = root;
    this.canvas = root.querySelector("#crop");
    this.where = root.querySelector("#crop-where"); // is read out
    const done = (crop) => {
      this.root.hidden = true;
      document.querySelector("#photo").focus(); // what had the keyboard is gone
      if (crop) use(this.file, crop);
    };
    root.querySelector("#crop-use").addEventListener("click", () => done(this.square()));
    root.querySelector("#crop-auto").addEventListener("click", () => done([]));
    root.querySelector("#crop-cancel").addEventListener("click", () => done(null));
    this.canvas.addEventListener("pointerdown", (event) => this.grab(event));
    this.canvas.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel"]) this.canvas.addEventListener(end, () => (this.held = null));
    this.canvas.addEventListener("keydown", (event) => this.key(event));
  }

  async open(file) {
    this.picture = await createImageBitmap(file);
    this.file = file;
    const { width, height } = this.picture;
    this.shrunk = Math.min(1, MOST / Math.max(width, height));
    Object.assign(this.canvas, { width: Math.round(width * this.shrunk), height: Math.round(height * this.shrunk) });
    this.side = Math.min(width, height) * 0.8;
    this.left = (width - this.side) / 2;
    this.top = (height - this.side) / 2;
    this.root.hidden = false;
    this.draw();
    this.canvas.focus();
  }

  square() {
    return [this.left, this.top, this.left + this.side, this.top + this.side].map(Math.round);
  }

  move(left, top, side) {
    const { width, height } = this.picture;
    this.side = Math.max(Math.min(LEAST, width, height), Math.min(side, width, height));
    this.left = Math.max(0, Math.min(left, width - this.side));
    this.top = Math.max(0, Math.min(top, height - this.side));
    this.draw();
  }

  at(event) {
    const box = this.canvas.getBoundingClientRect();
    this.scale = this.picture.width / box.width;
    return [(event.clientX - box.left) * this.scale, (event.clientY - box.top) * this.scale];
  }

  grab(event) {
    const [x, y] = this.at(event);
    const reach = HANDLE * this.scale;
    const right = this.left + this.side;
    const bottom = this.top + this.side;
    const corner = Math.abs(x - right) < reach && Math.abs(y - bottom) < reach;
    this.held = { x, y, left: this.left, top: this.top, side: this.side, corner };
    this.canvas.setPointerCapture(event.pointerId);
  }

  drag(event) {
    if (!this.held) return;
    const [x, y] = this.at(event);
    const { left, top, side, corner } = this.held;
    const dx = x - this.held.x;
    const dy = y - this.held.y;
    if (corner) this.move(left, top, side + Math.max(dx, dy));
    else this.move(left + dx, top + dy, side);
  }

  key(event) {
    const step = STEP * Math.min(this.picture.width, this.picture.height);
    const moves = {
      ArrowLeft: [-step, 0, 0], ArrowRight: [step, 0, 0], ArrowUp: [0, -step, 0], ArrowDown: [0, step, 0],
      "+": [-step / 2, -step / 2, step], "=": [-step / 2, -step / 2, step], "-": [step / 2, step / 2, -step],
    };
    const change = moves[event.key];
    if (!change) return;
    event.preventDefault();
    this.move(this.left + change[0], this.top + change[1], this.side + change[2]);
    const [side, left, top] = [this.side, this.left, this.top].map(Math.round);
    this.where.textContent = `A square of ${side} pixels, ${left} from the left and ${top} from the top.`;
  }

  draw() {
    const pen = this.canvas.getContext("2d");
    const { width, height } = this.picture;
    pen.setTransform(this.shrunk, 0, 0, this.shrunk, 0, 0); // all below is in pixels of the photo
    pen.drawImage(this.picture, 0, 0);
    pen.fillStyle = "rgb(0 0 0 / 55%)";
    pen.fillRect(0, 0, width, height);
    pen.drawImage(this.picture, this.left, this.top, this.side, this.side, this.left, this.top, this.side, this.side);
    pen.strokeStyle = "white";
    pen.lineWidth = Math.max(2, width / 200);
    pen.strokeRect(this.left, this.top, this.side, this.side);
    const dot = 3 * pen.lineWidth;
    pen.fillStyle = "white";
    pen.fillRect(this.left + this.side - dot, this.top + this.side - dot, 2 * dot, 2 * dot);
  }
}
