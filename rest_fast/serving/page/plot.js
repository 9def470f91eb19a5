// Frames a second, buffer and held frames over the last 30 seconds.

const POINTS = 60; // of half a second
const FPS = 25;
const MOST = { fps: 30, buffer: 1.2 };

export class Plot {
  constructor(canvas) {
    this.canvas = canvas;
    this.points = [];
    this.draw();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.draw());
    addEventListener("resize", () => this.draw());
  }

  add(fps, buffer, held) {
    this.points = [...this.points, { fps, buffer, held }].slice(-POINTS);
    this.draw();
  }

  clear() {
    this.points = [];
    this.draw();
  }

  draw() {
    const { clientWidth, clientHeight } = this.canvas;
    const [width, height] = [clientWidth, clientHeight].map((side) => Math.round(side * devicePixelRatio));
    Object.assign(this.canvas, { width, height }); // as many pixels as the screen has, or lines are blurred
    const pen = this.canvas.getContext("2d");
    const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
    const x = (k) => ((POINTS - this.points.length + k) / (POINTS - 1)) * width;
    pen.clearRect(0, 0, width, height);
    pen.strokeStyle = colour("line");
    pen.strokeRect(0.5, 0.5, width - 1, height - 1);
    pen.fillStyle = colour("line");
    pen.fillRect(0, height * (1 - FPS / MOST.fps), width, 1); // where frames a second belong
    for (const name of ["fps", "buffer"]) {
      pen.strokeStyle = colour(name);
      pen.lineWidth = 2 * devicePixelRatio;
      pen.beginPath();
      this.points.forEach((point, k) => pen.lineTo(x(k), height * (1 - Math.min(1, point[name] / MOST[name]))));
      pen.stroke();
    }
    pen.fillStyle = colour("held");
    this.points.forEach((point, k) => {
      if (k && point.held > this.points[k - 1].held) pen.fillRect(x(k) - 2, height - 8, 4, 8);
    });
  }
}
