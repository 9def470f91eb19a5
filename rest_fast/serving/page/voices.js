// What a face can be made to say: a file of sound, and the microphone, as int16 at the rate of the audio context.

const AHEAD = 5; // seconds of a file that are sent before they are spoken

// A file's samples, its channels mixed. Rejects for what is no sound that this browser reads.
export async function samplesOf(audio, data) {
  const sound = await audio.decodeAudioData(data);
  const mono = new Float32Array(sound.length);
  for (let c = 0; c < sound.numberOfChannels; c += 1) {
    const channel = sound.getChannelData(c);
    for (let k = 0; k < mono.length; k += 1) mono[k] += channel[k] / sound.numberOfChannels;
  }
  return int16(mono);
}

// By a loop: `Int16Array.from` with a function takes seconds for a long file.
function int16(floats) {
  const samples = new Int16Array(floats.length);
  for (let k = 0; k < samples.length; k += 1) samples[k] = Math.max(-1, Math.min(1, floats[k])) * 32767;
  return samples;
}

// Hands a file on by the second, no faster than the server has room for. `queued()`: seconds that wait there;
// `goOn()`: false when it is to stop. Returns: whether all was handed on.
export async function feed(samples, rate, { push, queued, goOn }) {
  for (let at = 0; at < samples.length; at += rate) {
    while (goOn() && queued() > AHEAD) await new Promise((done) => setTimeout(done, 200));
    if (!goOn()) return false;
    push(samples.subarray(at, at + rate));
  }
  return true;
}

export class Microphone {
  // Rejects where the browser gives none.
  static async open(audio, push) {
    const audioOptions = { channelCount: 1, echoCancellation: true };
    const media = await navigator.mediaDevices.getUserMedia({ audio: audioOptions });
    return new Microphone(audio, media, push);
  }

  constructor(audio, media, push) {
    this.media = media;
    this.node = new AudioWorkletNode(audio, "microphone", { numberOfOutputs: 0 });
    this.node.port.onmessage = ({ data }) => push(data);
    this.source = audio.createMediaStreamSource(media); // kept, or it is collected while it plays
    this.source.connect(this.node);
  }

  close() {
    this.media.getTracks().forEach((track) => track.stop());
    this.node.port.onmessage = null;
    this.node.port.postMessage("close");
    this.source.disconnect();
  }
}
