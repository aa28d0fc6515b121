"""C++ of the two ways into a compiled kernel; `_entry.py` fills in names, types and extents."""

from typing import Final

PROLOGUE: Final = """#include <atomic>
#include <climits>
#include <cstdint>
#include <cstdio>
"""

C_TEXT: Final = """
#define REGRAFT_EXPORT extern "C" __attribute__((visibility("default")))

REGRAFT_EXPORT const char* regraft_error() {{ return error_buf; }}

static int regraft_prepared() {{
  static std::atomic<uint64_t> devices{{0}};  // attributes of a kernel are set for each device
  int device = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) {{
    snprintf(error_buf, ERROR_BUF_SIZE, "no CUDA device: %s", cudaGetErrorString(status));
    return -1;
  }}
  uint64_t bit = uint64_t(1) << (device & 63);
  if (devices.load() & bit) return 0;
  int result = init();
  if (result == 0 && device < 64) devices.fetch_or(bit);
  return result;
}}

REGRAFT_EXPORT int regraft_launch(
    void* const* tensors, int count, const int64_t* extents, int extent_count, void* stream) {{
  static const char* const names[] = {{{names}}};
  static const bool required[] = {{{required}}};
  static const uintptr_t alignment[] = {{{alignment}}};
  if (count != {count} || extent_count != {extent_count}) {{
    snprintf(error_buf, ERROR_BUF_SIZE, "takes {count} tensors and {extent_count} extents; got %d and %d", count,
             extent_count);
    return -1;
  }}
  for (int i = 0; i < extent_count; ++i) {{
    if (extents[i] < 0 || extents[i] > INT_MAX) {{
      snprintf(error_buf, ERROR_BUF_SIZE, "extent %d must be in [0, 2^31); got %lld", i, (long long)extents[i]);
      return -1;
    }}
  }}
  if ({empty}) return 0;
  for (int i = 0; i < count; ++i) {{
    if (required[i] && !tensors[i]) {{
      snprintf(error_buf, ERROR_BUF_SIZE, "%s is null", names[i]);
      return -1;
    }}
    if (reinterpret_cast<uintptr_t>(tensors[i]) % alignment[i]) {{
      snprintf(error_buf, ERROR_BUF_SIZE, "%s must be aligned to %d bytes", names[i], (int)alignment[i]);
      return -1;
    }}
  }}
  if (regraft_prepared()) return -1;
  return call({call}, static_cast<cudaStream_t>(stream));
}}
"""

FFI_TEXT: Final = """
#include <dlfcn.h>
#include <initializer_list>
#include <string>
#include <tvm/ffi/c_api.h>
#include <tvm/ffi/extra/c_env_api.h>

// Looked up when they are needed: without tvm_ffi in the process the library still loads, and its C function works.
static int regraft_raise(const char* kind, const std::string& message) {{
  auto raise = reinterpret_cast<decltype(&TVMFFIErrorSetRaisedFromCStr)>(
      dlsym(RTLD_DEFAULT, "TVMFFIErrorSetRaisedFromCStr"));
  if (raise) raise(kind, message.c_str());
  return -1;
}}

static std::string regraft_list(const int64_t* values, int64_t count) {{
  std::string shown = "[";
  for (int64_t i = 0; i < count; ++i) shown += (i ? ", " : "") + std::to_string(values[i]);
  return shown + "]";
}}

static const DLTensor* regraft_tensor(const TVMFFIAny& value) {{
  if (value.type_index == kTVMFFIDLTensorPtr) return static_cast<const DLTensor*>(value.v_ptr);
  return value.type_index == kTVMFFITensor ? TVMFFITensorGetDLTensorPtr(value.v_obj) : nullptr;
}}

static bool regraft_contiguous(const DLTensor& tensor) {{
  int64_t expected = 1;
  for (int axis = tensor.ndim - 1; tensor.strides && axis >= 0; --axis) {{
    if (tensor.shape[axis] != 1 && tensor.strides[axis] != expected) return false;
    expected *= tensor.shape[axis];
  }}
  return true;
}}

static char* regraft_address(const DLTensor& tensor) {{
  return static_cast<char*>(tensor.data) + tensor.byte_offset;
}}

static int regraft_check(const char* name, const DLTensor* given, DLDataType dtype, const char* dtype_name,
                         std::initializer_list<int64_t> dims, int64_t* extents, uintptr_t alignment) {{
  static const char* const extent_names[] = {{{names}}};
  const std::string must = std::string("{op}: ") + name + " must be ";
  if (!given) return regraft_raise("TypeError", must + "a tensor");
  const DLTensor& tensor = *given;
  if (tensor.dtype.code != dtype.code || tensor.dtype.bits != dtype.bits || tensor.dtype.lanes != dtype.lanes)
    return regraft_raise("TypeError", must + dtype_name + "; got type code " + std::to_string(tensor.dtype.code) +
                                          " of " + std::to_string(tensor.dtype.bits) + " bits");
  std::string needed;
  bool fits = tensor.ndim == (int64_t)dims.size(), empty = false;
  int axis = 0;
  for (int64_t dim : dims) {{
    int64_t* extent = dim < 0 ? extents + (-1 - dim) : nullptr;
    if (fits && extent && *extent < 0) *extent = tensor.shape[axis];
    int64_t wanted = extent ? *extent : dim;
    needed += (axis ? ", " : "") + (wanted < 0 ? std::string(extent_names[-1 - dim]) : std::to_string(wanted));
    fits = fits && tensor.shape[axis] == wanted;
    empty = empty || wanted == 0;
    ++axis;
  }}
  if (!fits)
    return regraft_raise("ValueError", must + "[" + needed + "]; got " + regraft_list(tensor.shape, tensor.ndim));
  if (!empty && !regraft_contiguous(tensor))
    return regraft_raise("ValueError",
                         must + "contiguous; its strides are " + regraft_list(tensor.strides, tensor.ndim));
  if (!empty && reinterpret_cast<uintptr_t>(regraft_address(tensor)) % alignment)
    return regraft_raise("ValueError", must + "aligned to " + std::to_string(alignment) + " bytes");
  return 0;
}}

static int regraft_check_device(const char* name, const DLTensor& tensor, const DLTensor& first) {{
  const std::string must = std::string("{op}: ") + name + " must be on ";
  if (tensor.device.device_type != kDLCUDA && tensor.device.device_type != kDLCUDAManaged)
    return regraft_raise("ValueError", must + "a CUDA device; got device type " +
                                           std::to_string((int)tensor.device.device_type));
  if (tensor.device.device_id != first.device.device_id)
    return regraft_raise("ValueError", must + "CUDA device " + std::to_string(first.device.device_id) + "; got " +
                                           std::to_string(tensor.device.device_id));
  return 0;
}}

struct RegraftDeviceGuard {{
  int before = -1;
  explicit RegraftDeviceGuard(int device) {{
    if (cudaGetDevice(&before) == cudaSuccess && before != device) cudaSetDevice(device); else before = -1;
  }}
  ~RegraftDeviceGuard() {{ if (before >= 0) cudaSetDevice(before); }}
}};

REGRAFT_EXPORT int __tvm_ffi_{op}(void*, const TVMFFIAny* given, int32_t count, TVMFFIAny* result) {{
  static const char* const present_names[] = {{{present_names}}};
  int64_t extents[] = {{{extents}}};
  if (count != {present_count})
    return regraft_raise("TypeError", "{op}: takes {present_count} tensors ({present_list}); got " +
                                          std::to_string(count));
  const DLTensor* tensor[{present_count}];
  for (int i = 0; i < count; ++i) tensor[i] = regraft_tensor(given[i]);
{checks}
  for (int i = 0; i < count; ++i)
    if (regraft_check_device(present_names[i], *tensor[i], *tensor[0])) return -1;
  DLDevice device = tensor[0]->device;
  RegraftDeviceGuard guard(device.device_id);
  void* addresses[] = {{{addresses}}};
  auto current = reinterpret_cast<decltype(&TVMFFIEnvGetStream)>(dlsym(RTLD_DEFAULT, "TVMFFIEnvGetStream"));
  if (!current) return regraft_raise("RuntimeError", "{op}: tvm_ffi has no current stream");
  void* stream = current(kDLCUDA, device.device_id);
  if (regraft_launch(addresses, {count}, extents, {extent_count}, stream))
    return regraft_raise("RuntimeError", std::string("{op}: ") + regraft_error());
  result->type_index = kTVMFFINone;
  return 0;
}}
"""
