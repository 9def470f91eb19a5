// Two audio processors: what plays frames' sound in order and says which frame is heard, and what hears a microphone.

const PIECE = 0.02; // seconds of the microphone in a message

class Player extends AudioWorkletProcessor {
  constructor({ processorOptions: { least, most } }) {
    super();
    this.least = least; // frames that wait before playing begins
    this.most = most; // frames that wait before silent ones are left out
    this.queue = []; // {index, sound: Float32Array, idle}
    this.at = 0; // samples of the first one that were played
    this.playing = false;
    this.gaps = 0; // times that nothing was there to play
    this.alive = true;
    this.port.onmessage = ({ data }) => {
      if (data.close) this.alive = false;
      else if (data.mute) this.queue.forEach((frame) => Object.assign(frame, { idle: true, sound: frame.sound.fill(0) }));
      else this.queue.push(data);
    };
  }

  process(_, [[out]]) {
    if (!this.playing && this.queue.length < this.least) return this.alive;
    this.playing = true;
    let done = 0;
    while (done < out.length) {
      if (this.at === 0 && !this.begin(done)) return this.alive;
      const { sound } = this.queue[0];
      const count = Math.min(out.length - done, sound.length - this.at);
      out.set(sound.subarray(this.at, this.at + count), done);
      done += count;
      this.at += count;
      if (this.at === sound.length) {
        this.queue.shift();
        this.at = 0;
      }
    }
    return this.alive;
  }

  // Come to the next frame, `done` samples from now. Returns: whether there is one.
  begin(done) {
    while (this.queue.length > this.most && this.queue[0].idle) this.queue.shift();
    const waiting = this.queue.length;
    this.playing = waiting > 0;
    if (!this.playing) this.gaps += 1;
    const time = currentTime + done / sampleRate;
    this.port.postMessage({ index: this.queue[0]?.index, waiting, time, gaps: this.gaps });
    return this.playing;
  }
}

class Microphone extends AudioWorkletProcessor {
  constructor() {
    super();
    this.piece = new Int16Array(Math.round(PIECE * sampleRate));
    this.at = 0;
    this.alive = true;
    this.port.onmessage = () => (this.alive = false);
  }

  process([[sound]]) {
    for (const value of sound ?? []) {
      this.piece[this.at++] = Math.max(-1, Math.min(1, value)) * 32767;
      if (this.at === this.piece.length) {
        this.port.postMessage(this.piece.slice());
        this.at = 0;
      }
    }
    return this.alive;
  }
}

registerProcessor("player", Player);
registerProcessor("microphone", Microphone);
