// The live page: a face, a voice, and how it runs.

import { Cropper } from "./cropper.js";
import { Plot } from "./plot.js";
import { FLAGS, Stream } from "./stream.js";

const BASE = new URL(".", location.href); // the page may lie below another application
const FPS = 25;
const LEAST = 3; // frames that wait before sound begins: 0.12 s
const AHEAD = 20; // seconds of a file that are sent before they are spoken
const $ = (name) => document.getElementById(name);
const token = new URLSearchParams(location.search).get("token") || "";
const face = $("face").getContext("2d");
const plot = new Plot($("plot"));

let stream = null; // the open session
let audio = null; // AudioContext
let player = null; // its worklet
let microphone = null; // {track, node} while it is on
let sending = 0; // the number of the file that is being sent
const state = reset();

function reset() {
  return {
    bitmaps: new Map(), // pictures that wait for their sound, by index
    asked: null, // when the first sample of speech was sent
    drawn: [], // times at which frames were drawn, of the last second
    apart: 0, // ms between a frame's sound and its picture, the largest of the last second
    waiting: 0,
    held: 0,
    shown: 0, // frames drawn
    first: null,
  };
}

// For tests, and for the curious.
window.restFast = { state, last: null };

function tell(text) {
  $("status").textContent = text;
}

function address(path) {
  const url = new URL(path, BASE);
  if (token) url.searchParams.set("token", token);
  return url.href;
}

// -- faces

async function loadFaces() {
  const answer = await fetch(address("v1/avatars"));
  if (!answer.ok) {
    tell(answer.status === 403 ? "The server wants a token: add ?token=... to the address." : "The server does not answer.");
    return;
  }
  const { avatars } = await answer.json();
  avatars.forEach((name, k) => addFace(name, name.replaceAll("_", " "), k === 0));
}

function addFace(name, words, chosen) {
  const label = document.createElement("label");
  const radio = document.createElement("input");
  const picture = document.createElement("img");
  Object.assign(radio, { type: "radio", name: "face", value: name, checked: chosen });
  Object.assign(picture, { src: address(`v1/avatars/${encodeURIComponent(name)}/picture`), alt: words });
  radio.addEventListener("change", choose);
  label.append(radio, picture);
  $("faces").append(label);
  if (chosen) show(picture);
}

function chosenFace() {
  return document.querySelector("#faces input:checked");
}

async function choose() {
  const picture = chosenFace().nextElementSibling;
  if (stream) {
    await stop();
    await start();
  } else {
    show(picture);
  }
}

async function show(picture) {
  await picture.decode().catch(() => {});
  if (!stream && picture.naturalWidth) draw(picture, picture.naturalWidth, picture.naturalHeight);
}

function draw(picture, width, height) {
  const canvas = face.canvas;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  face.drawImage(picture, 0, 0);
}

const cropper = new Cropper($("cropper"), async (file, crop) => {
  tell("The photo is being prepared ...");
  const answer = await fetch(address(`v1/avatars?crop=${crop.join(",")}`), { method: "POST", body: file });
  const found = await answer.json();
  if (!answer.ok) return tell(found.message);
  document.querySelectorAll("#faces input").forEach((radio) => (radio.checked = false));
  addFace(found.avatar, "your photo", true);
  tell("The photo is ready.");
  if (stream) await choose();
});

$("photo").addEventListener("change", ({ target }) => {
  if (target.files[0]) cropper.open(target.files[0]).catch(() => tell("That file is no picture that this browser reads."));
  target.value = "";
});

// -- the session

async function start() {
  if (!chosenFace()) return tell("Choose a face first.");
  $("start").disabled = true;
  tell("Connecting ...");
  if (!audio) {
    audio = new AudioContext({ latencyHint: "interactive" });
    await audio.audioWorklet.addModule("worklets.js");
  }
  await audio.resume();
  Object.assign(state, reset());
  player = new AudioWorkletNode(audio, "player", { outputChannelCount: [1], processorOptions: { least: LEAST } });
  player.port.onmessage = ({ data }) => heard(data);
  player.connect(audio.destination);
  const ended = (reason) => mine === stream && left(reason);
  const mine = new Stream(address("v1/avatar/stream"), chosenFace().value, audio.sampleRate, { ready, frame, said, ended });
  stream = mine;
}

function ready() {
  $("start").textContent = "Stop";
  $("start").disabled = false;
  for (const name of ["interrupt", "mic", "speech", "file"]) $(name).disabled = false;
  tell("The face listens. Speak, or play something.");
}

function left(reason) {
  sending += 1;
  if (microphone) micOff();
  player?.disconnect();
  stream = null;
  $("start").textContent = "Start";
  $("start").disabled = false;
  for (const name of ["interrupt", "mic", "speech", "file"]) $(name).disabled = true;
  tell(reason || "Stopped.");
}

async function stop() {
  const closing = stream;
  closing?.stop();
  left("");
}

$("start").addEventListener("click", () => (stream ? stop() : start().catch((error) => left(String(error)))));

async function frame({ index, flags, picture, sound }) {
  const floats = Float32Array.from(sound, (value) => value / 32768);
  if (flags & FLAGS.held) state.held += 1;
  const at = player;
  state.bitmaps.set(index, createImageBitmap(picture));
  // the sound waits for its picture: a frame that is heard can be drawn
  await state.bitmaps.get(index).catch(() => null);
  at.port.postMessage({ index, sound: floats, idle: Boolean(flags & FLAGS.idle) }, [floats.buffer]);
  window.restFast.last = { index, flags };
}

// The worklet has begun a frame's sound; its picture is due when the loudspeaker plays it.
async function heard({ index, waiting, time, underruns }) {
  if (underruns !== undefined) return;
  state.waiting = waiting;
  const bitmap = await state.bitmaps.get(index)?.catch(() => null);
  for (const old of state.bitmaps.keys()) if (old <= index) state.bitmaps.delete(old);
  if (!bitmap) return;
  const delay = (time + (audio.outputLatency || 0) - audio.currentTime) * 1000;
  if (delay > 8) setTimeout(() => paint(bitmap, delay, performance.now()), delay);
  else paint(bitmap, delay, performance.now());
}

function paint(bitmap, delay, from) {
  draw(bitmap, bitmap.width, bitmap.height);
  bitmap.close();
  const now = performance.now();
  state.apart = Math.max(state.apart * 0.98, Math.abs(now - from - delay));
  state.shown += 1;
  state.drawn = [...state.drawn.filter((time) => now - time < 1000), now];
}

function said(message) {
  if (message.type === "speech.started" && state.asked !== null) {
    // it is shown when what waits before it was played
    state.first = performance.now() - state.asked + (state.waiting * 1000) / FPS;
    state.asked = null;
    tell("Speaking.");
  } else if (message.type === "interrupted") {
    tell("Interrupted.");
  } else if (message.type === "playback.finished" && !message.interrupted) {
    tell("The face has finished.");
  } else if (message.type === "stats") {
    state.queued = message.queued;
  }
}

$("interrupt").addEventListener("click", () => {
  sending += 1;
  player.port.postMessage({ mute: true });
  stream.interrupt();
});

// -- voices

async function send(data) {
  const number = ++sending;
  const sound = await audio.decodeAudioData(data);
  const mono = new Float32Array(sound.length);
  for (let c = 0; c < sound.numberOfChannels; c += 1) {
    sound.getChannelData(c).forEach((value, k) => (mono[k] += value / sound.numberOfChannels));
  }
  const samples = Int16Array.from(mono, (value) => Math.max(-1, Math.min(1, value)) * 32767);
  state.asked = performance.now();
  state.queued = 0;
  const rate = audio.sampleRate;
  for (let at = 0; at < samples.length; at += rate) {
    while (sending === number && stream && state.queued > AHEAD) await new Promise((done) => setTimeout(done, 200));
    if (sending !== number || !stream) return;
    stream.push(samples.subarray(at, at + rate));
    state.queued += 1;
  }
  stream.end("file");
  tell("The sound is on its way.");
}

async function sendFile(file) {
  try {
    await send(await file.arrayBuffer());
  } catch {
    tell("That file is no sound that this browser reads.");
  }
}

$("file").addEventListener("change", ({ target }) => {
  if (target.files[0]) sendFile(target.files[0]);
  target.value = "";
});
$("speech").addEventListener("click", async () => send(await (await fetch(address("v1/speech"))).arrayBuffer()));
for (const kind of ["dragover", "drop", "dragleave"]) {
  $("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind !== "drop" || !event.dataTransfer.files[0]) return;
    if (stream) sendFile(event.dataTransfer.files[0]);
    else tell("Press Start first.");
  });
}

async function micOn() {
  const media = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, echoCancellation: true } });
  const node = new AudioWorkletNode(audio, "microphone", { numberOfOutputs: 0 });
  audio.createMediaStreamSource(media).connect(node);
  node.port.onmessage = ({ data }) => stream?.push(data);
  state.asked = performance.now();
  microphone = { media, node };
  $("mic").setAttribute("aria-pressed", "true");
  tell("The microphone is on.");
}

function micOff() {
  microphone.media.getTracks().forEach((track) => track.stop());
  microphone.node.disconnect();
  microphone = null;
  $("mic").setAttribute("aria-pressed", "false");
  stream?.end("microphone");
}

$("mic").addEventListener("click", () =>
  microphone ? micOff() : micOn().catch(() => tell("The browser gives no microphone to this page.")),
);

// -- numbers

setInterval(() => {
  const now = performance.now();
  const fps = state.drawn.filter((time) => now - time < 1000).length;
  const buffer = state.waiting / FPS;
  if (stream) plot.add(fps, buffer, state.held);
  $("first").textContent = state.first === null ? "\u2013" : `${Math.round(state.first)} ms`;
  $("fps").textContent = stream ? String(fps) : "\u2013";
  $("buffer").textContent = stream ? `${Math.round(buffer * 1000)} ms` : "\u2013";
  $("held").textContent = stream ? String(state.held) : "\u2013";
  $("apart").textContent = stream ? `${Math.round(state.apart)} ms` : "\u2013";
}, 500);

loadFaces();
