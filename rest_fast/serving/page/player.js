// Plays the sound of a session's frames, and draws each picture when the sound that came with it is heard.
//
// The sound has the clock: the worklet says at which time of the audio context a frame's sound begins, and at each
// refresh of the screen the latest picture is drawn whose sound has begun to come out of the loudspeaker.

const LEAST = 3; // frames that wait before sound begins: 0.12 s
const MOST = 6; // frames that wait at most before silent ones are left out, so that no delay stays behind a bad moment
const KEPT = 50; // pictures that are kept where the screen is not refreshed, as in a hidden tab
const HALF = 0.008; // half of a screen's refresh, seconds: a picture is drawn at the refresh nearest to its time

export class Player {
  // `spoke(ms)` is called when the first speech behind `ask` is seen and heard.
  constructor(audio, canvas, spoke) {
    this.audio = audio;
    this.pen = canvas.getContext("2d");
    this.spoke = spoke;
    this.pictures = new Map(); // frames whose sound waits, by index, in order
    this.due = []; // frames whose sound has begun or begins in a moment
    this.asked = null; // {at, after}: when the first sample was sent, and the latest frame that had come then
    this.drawn = []; // [time, ms between sound and picture] of the last second
    this.waiting = this.held = this.gaps = 0;
    this.order = Promise.resolve();
    const processorOptions = { least: LEAST, most: MOST };
    this.node = new AudioWorkletNode(audio, "player", { numberOfInputs: 0, outputChannelCount: [1], processorOptions });
    this.node.port.onmessage = ({ data }) => this.begun(data);
    this.node.connect(audio.destination);
    this.refresh = requestAnimationFrame(() => this.step());
  }

  // Pictures are decoded beside each other, and handed on in the order in which they came.
  add({ index, idle, held, stale, picture, sound }) {
    const bitmap = createImageBitmap(picture).catch(() => null);
    const floats = stale ? new Float32Array(sound.length) : Float32Array.from(sound, (value) => value / 32768);
    const speaks = !(idle || held || stale);
    this.held += held;
    this.order = this.order.then(async () => {
      this.pictures.set(index, { index, speaks, bitmap: await bitmap });
      this.node.port.postMessage({ index, sound: floats, idle: !speaks }, [floats.buffer]);
    });
  }

  ask(after) {
    this.asked = { at: performance.now(), after };
  }

  // What waits is silent from now on: the visitor has interrupted.
  hush() {
    this.asked = null;
    for (const frame of [...this.pictures.values(), ...this.due]) frame.speaks = false;
    this.node.port.postMessage({ mute: true });
  }

  // The worklet has come to a frame's sound, or to the end of all that it had.
  begun({ index, waiting, time, gaps }) {
    this.waiting = waiting;
    this.gaps = gaps;
    if (index === undefined) return;
    for (const [other, frame] of this.pictures) {
      if (other > index) break;
      this.pictures.delete(other);
      if (other === index) this.due.push({ ...frame, time });
      else frame.bitmap?.close(); // its silence was left out
    }
    while (this.due.length > KEPT) this.due.shift().bitmap?.close();
  }

  // The time of the audio context that comes out of the loudspeaker now.
  get heard() {
    const { currentTime, outputLatency } = this.audio;
    const { contextTime, performanceTime } = this.audio.getOutputTimestamp();
    const exact = contextTime + (performance.now() - performanceTime) / 1000;
    // some browsers answer with zeros or with old values
    return performanceTime && Math.abs(exact - currentTime) < 1 ? exact : currentTime - (outputLatency || 0);
  }

  step() {
    this.refresh = requestAnimationFrame(() => this.step());
    const heard = this.heard;
    let frame = null;
    while (this.due.length && this.due[0].time <= heard + HALF) {
      frame?.bitmap?.close();
      frame = this.due.shift();
      if (frame.speaks && this.asked && frame.index > this.asked.after) this.answered();
    }
    if (frame?.bitmap) this.draw(frame, heard);
  }

  answered() {
    const spent = performance.now() - this.asked.at;
    this.asked = null;
    this.spoke(spent);
  }

  draw({ bitmap, time }, heard) {
    paint(this.pen, bitmap, bitmap.width, bitmap.height);
    bitmap.close();
    const now = performance.now();
    this.drawn = [...this.drawn.filter(([at]) => now - at < 1000), [now, Math.abs(heard - time) * 1000]];
  }

  // Frames that were drawn in the last second, and the largest distance between sound and picture among them.
  get numbers() {
    const recent = this.drawn.filter(([at]) => performance.now() - at < 1000);
    return { fps: recent.length, apart: recent.length ? Math.max(...recent.map(([, apart]) => apart)) : null };
  }

  close() {
    cancelAnimationFrame(this.refresh);
    this.node.port.onmessage = null;
    this.node.port.postMessage({ close: true });
    this.node.disconnect();
  }
}

export function paint(pen, picture, width, height) {
  if (pen.canvas.width !== width || pen.canvas.height !== height) Object.assign(pen.canvas, { width, height });
  pen.drawImage(picture, 0, 0);
}
