"""Runs in the Python that has mediapipe and dlib, never in ours: frames in, faces out. Imports nothing of rest_fast.

    read_faces.py STRIDE [FRAMES.npy FACES.npz] ...

FRAMES: uint8 [n, H, W, 3]. FACES, for each of its frames:
    landmarks    float32 [n, 478, 3]: MediaPipe's face mesh with irises, (x, y) in pixels of the frame, z in the same
                 unit, growing away from the camera; NaN where no face is found
    descriptors  float32 [n, 128]: dlib's face descriptor of frames 0, STRIDE, 2 STRIDE, ...; NaN elsewhere, and where
                 dlib finds no face
    faces        int64: how many faces MediaPipe's full-range detector finds in frame 0
The last line of standard output is JSON: the versions of both packages.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import sys

SIDE = 256  # px at which both look at a square frame, whatever its size: sizes of models can be compared


def main() -> None:
    np = importlib.import_module("numpy")
    stride, paths = int(sys.argv[1]), sys.argv[2:]
    if stride < 1 or len(paths) % 2:
        raise SystemExit("expected STRIDE of at least 1 and pairs of FRAMES.npy FACES.npz")
    reader = Reader(np)
    for given, made in zip(paths[::2], paths[1::2]):
        frames = np.load(given, mmap_mode="r", allow_pickle=False)
        if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
            raise SystemExit(f"{given}: expected uint8 [n, H, W, 3], got {frames.dtype} {list(frames.shape)}")
        np.savez(made, **reader.read(frames, stride))
    print(json.dumps({name: importlib.metadata.version(name) for name in ("mediapipe", "dlib-bin")}))


class Reader:
    """The models of both packages, loaded once."""

    def __init__(self, np):
        self.np, self.cv2 = np, importlib.import_module("cv2")
        self.solutions, dlib = importlib.import_module("mediapipe").solutions, importlib.import_module("dlib")
        # Found without importing the package, which wants a setuptools that newer Pythons do not bring.
        package = importlib.util.find_spec("face_recognition_models")
        if package is None or not package.submodule_search_locations:
            raise SystemExit("expected the package face_recognition_models, found none")
        models = os.path.join(package.submodule_search_locations[0], "models")
        self.find = dlib.get_frontal_face_detector()
        self.shape = dlib.shape_predictor(os.path.join(models, "shape_predictor_5_face_landmarks.dat"))
        self.describe = dlib.face_recognition_model_v1(
            os.path.join(models, "dlib_face_recognition_resnet_model_v1.dat")
        )

    def read(self, frames, stride):
        np = self.np
        landmarks = np.full((len(frames), 478, 3), np.nan, np.float32)
        descriptors = np.full((len(frames), 128), np.nan, np.float32)
        # Each frame on its own: a tracker would carry the lips of one frame into the next.
        mesh = self.solutions.face_mesh.FaceMesh(static_image_mode=True, refine_landmarks=True, max_num_faces=1)
        with mesh:
            for i, frame in enumerate(frames):
                height, width = frame.shape[:2]
                looked_at = self.sized(frame)
                found = mesh.process(looked_at).multi_face_landmarks
                if found:
                    points = np.array([[p.x, p.y, p.z] for p in found[0].landmark], np.float32)
                    landmarks[i] = points * np.array([width, height, width], np.float32)
                if i % stride == 0:
                    descriptors[i] = self.descriptor(looked_at)
        return {"landmarks": landmarks, "descriptors": descriptors, "faces": np.int64(self.count(frames[0]))}

    def sized(self, frame):
        """A square frame at SIDE pixels; another one, a whole photograph, as it is."""
        height, width = frame.shape[:2]
        if height != width or height == SIDE:
            return self.np.ascontiguousarray(frame)
        how = self.cv2.INTER_CUBIC if height < SIDE else self.cv2.INTER_AREA
        return self.cv2.resize(self.np.ascontiguousarray(frame), (SIDE, SIDE), interpolation=how)

    def descriptor(self, frame):
        boxes = self.find(frame, 1)
        if not boxes:
            return self.np.nan
        largest = max(boxes, key=lambda box: box.area())
        return self.np.array(self.describe.compute_face_descriptor(frame, self.shape(frame, largest)))

    def count(self, frame):
        detection = self.solutions.face_detection
        with detection.FaceDetection(model_selection=1, min_detection_confidence=0.5) as detector:
            return len(detector.process(self.np.ascontiguousarray(frame)).detections or [])


if __name__ == "__main__":
    main()
