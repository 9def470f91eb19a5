// Any op of csrc/ops as a function of a Python module: integers and floats in, error code out.
//
// The signature follows from the op's own list of arguments. It is the same in rest_fast._cpu and
// rest_fast._cuda, which adds stream and device. `module.arguments[op]` names what a call takes.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

#include "core.h"

namespace rest_fast {

namespace py = pybind11;
using Address = std::uintptr_t;

// What Python hands over for a field of type T, and how it is set.
template <class T, class = void>
struct Argument {
  using Python = T;
  static void set(T& field, Python value) { field = value; }
};

template <class T>
struct Argument<T*> {
  using Python = Address;
  static void set(T*& field, Python value) { field = reinterpret_cast<T*>(value); }
};

template <>
struct Argument<float> {
  using Python = double;
  static void set(float& field, Python value) { field = static_cast<float>(value); }
};

template <class T>
struct Argument<T, std::enable_if_t<std::is_enum_v<T>>> {
  using Python = int;
  static void set(T& field, Python value) { field = static_cast<T>(value); }
};

template <>
struct Argument<VolumeStrides> {
  using Python = std::array<int64_t, 5>;
  static void set(VolumeStrides& field, const Python& s) { field = {s[0], s[1], s[2], s[3], s[4]}; }
};

// Several fields at once: a sequence of as many integers.
template <class... T>
struct Argument<std::tuple<T&...>> {
  using Python = std::array<int64_t, sizeof...(T)>;
  static void set(const std::tuple<T&...>& fields, const Python& values) {
    std::size_t i = 0;
    std::apply([&](T&... field) { ((field = values[i++]), ...); }, fields);
  }
};

template <class Params, class Get>
using ArgumentOf = Argument<std::decay_t<decltype(std::declval<Get>()(std::declval<Params&>()))>>;

// Not called `bind`: std::bind would be found first, and take the call.
template <class Params, class... Extra, class Run, class... Gets>
void bind_op(py::module_& m, const char* name, Run run, const std::tuple<Field<Gets>...>& fields) {
  static_assert(std::is_trivially_copyable_v<Params>, "a kernel takes its struct by value");
  static_assert(sizeof(Address) == sizeof(void*), "Python hands over addresses as integers");
  const auto call = [run, fields](typename ArgumentOf<Params, Gets>::Python... values,
                                  Extra... extra) -> int {
    Params p{};
    std::apply(
        [&](const Field<Gets>&... field) {
          (ArgumentOf<Params, Gets>::set(field.get(p), values), ...);
        },
        fields);
    return run(p, extra...);
  };
  m.def(name, call, py::call_guard<py::gil_scoped_release>());
  if (!py::hasattr(m, "arguments")) m.attr("arguments") = py::dict();
  m.attr("arguments")[name] =
      std::apply([](const auto&... field) { return py::make_tuple(field.name...); }, fields);
}

// `run` takes the struct, in host memory.
template <class Params>
void bind_cpu(py::module_& m, const char* name, int (*run)(const Params&)) {
  bind_op<Params>(m, name, run, arguments(static_cast<const Params*>(nullptr)));
}

// `run` takes the struct, in the memory of a device, and a stream of that device.
template <class Params>
void bind_cuda(py::module_& m, const char* name, int (*run)(const Params&, void*, int)) {
  const auto on_stream = [run](const Params& p, Address stream, int device) {
    return run(p, reinterpret_cast<void*>(stream), device);
  };
  bind_op<Params, Address, int>(m, name, on_stream, arguments(static_cast<const Params*>(nullptr)));
}

}  // namespace rest_fast
