// Two audio processors: what plays frames' sound in order and says which frame is heard, and what hears a microphone.

const PIECE = 0.02; // seconds of the microphone in a message

class Player extends AudioWorkletProcessor {
  constructor(options) {
    super();
    this.least = options.processorOptions.least; // frames that wait before playing begins
    this.queue = []; // {index, sound: Float32Array}
    this.at = 0; // samples of the first one that were played
    this.playing = false;
    this.underruns = 0;
    this.port.onmessage = ({ data }) => {
      if (data.mute) this.queue.forEach((frame) => frame.sound.fill(0));
      else this.queue.push(data);
    };
  }

  process(_, [[out]]) {
    if (!this.playing && this.queue.length < this.least) return true;
    this.playing = true;
    let done = 0;
    while (done < out.length) {
      const frame = this.queue[0];
      if (!frame) {
        this.playing = false;
        this.underruns += 1;
        this.port.postMessage({ underruns: this.underruns });
        return true;
      }
      if (this.at === 0) {
        this.port.postMessage({ index: frame.index, waiting: this.queue.length, time: currentTime + done / sampleRate });
      }
      const count = Math.min(out.length - done, frame.sound.length - this.at);
      out.set(frame.sound.subarray(this.at, this.at + count), done);
      done += count;
      this.at += count;
      if (this.at === frame.sound.length) {
        this.queue.shift();
        this.at = 0;
      }
    }
    return true;
  }
}

class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Int16Array(Math.round(PIECE * sampleRate));
    this.at = 0;
  }

  process([[sound]]) {
    if (!sound) return true;
    for (const value of sound) {
      this.piece[this.at++] = Math.max(-1, Math.min(1, value)) * 32767;
      if (this.at === this.piece.length) {
        this.port.postMessage(this.piece.slice());
        this.at = 0;
      }
    }
    return true;
  }
}

registerProcessor("player", Player);
registerProcessor("microphone", Microphone);
