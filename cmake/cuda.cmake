# Device code: whether there is any, and for which GPUs.
#
# GLIMPROUTER_CUDA=AUTO builds for the GPUs of this machine, and no device code where there is none;
# ON for GLIMPROUTER_CUDA_ARCHITECTURES, which are by default all from Ampere on: machine code for
# data-centre and consumer cards, and code that newer ones translate. Naming architectures asks for
# device code, too, where nvcc is found.
set(GLIMPROUTER_ALL_ARCHITECTURES 80-real 86-real 89-real 90-real 100-real 120)

# AUTO, or any of CMake's words for true and false.
if(NOT GLIMPROUTER_CUDA STREQUAL "AUTO")
  if(NOT GLIMPROUTER_CUDA MATCHES "^([Oo][Nn]|[Yy][Ee][Ss]|[Tt][Rr][Uu][Ee]|1|[Oo][Ff][Ff]|[Nn][Oo]|[Ff][Aa][Ll][Ss][Ee]|0)$")
    message(FATAL_ERROR "GLIMPROUTER_CUDA must be AUTO, ON or OFF, got ${GLIMPROUTER_CUDA}")
  elseif(GLIMPROUTER_CUDA)
    set(GLIMPROUTER_CUDA ON)
  else()
    set(GLIMPROUTER_CUDA OFF)
  endif()
endif()

# The emulator gives the same kernels other bodies: the two do not go into one binary.
if(GLIMPROUTER_BUILD_TESTS OR GLIMPROUTER_EMULATOR)
  if(GLIMPROUTER_CUDA STREQUAL "ON")
    message(FATAL_ERROR "GLIMPROUTER_CUDA=ON goes neither with the C++ tests nor with the emulator")
  endif()
  set(GLIMPROUTER_CUDA OFF)
endif()

set(architectures ${GLIMPROUTER_CUDA_ARCHITECTURES})
set(why_none "GLIMPROUTER_CUDA=OFF")
if(GLIMPROUTER_CUDA STREQUAL "ON" AND NOT architectures)
  set(architectures ${GLIMPROUTER_ALL_ARCHITECTURES})
elseif(GLIMPROUTER_CUDA STREQUAL "AUTO")
  include(CheckLanguage)
  check_language(CUDA)
  find_program(GLIMPROUTER_NVIDIA_SMI nvidia-smi)
  if(NOT CMAKE_CUDA_COMPILER)
    set(architectures "")
    set(why_none "no nvcc was found")
  elseif(NOT architectures AND GLIMPROUTER_NVIDIA_SMI)
    execute_process(
      COMMAND ${GLIMPROUTER_NVIDIA_SMI} --query-gpu=compute_cap --format=csv,noheader
      OUTPUT_VARIABLE capabilities RESULT_VARIABLE status ERROR_QUIET)
    execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-arch OUTPUT_VARIABLE known ERROR_QUIET)
    if(status EQUAL 0)
      string(REGEX MATCHALL "[0-9]+\\.[0-9]+" capabilities "${capabilities}")
      foreach(capability ${capabilities})
        string(REPLACE "." "" capability ${capability})
        # Ampere is the first that is served; a GPU may also be newer than this nvcc.
        if(capability GREATER_EQUAL 80 AND known MATCHES "compute_${capability}[^0-9]")
          list(APPEND architectures ${capability}-real)
        else()
          list(APPEND unserved ${capability})
        endif()
      endforeach()
      list(REMOVE_DUPLICATES architectures)
    endif()
  endif()
  if(CMAKE_CUDA_COMPILER AND NOT architectures)
    set(why_none "no GPU was found; -DGLIMPROUTER_CUDA=ON builds it for all")
    if(unserved)
      set(why_none "GPUs of compute capability ${unserved}: older than 80, or unknown to this nvcc")
    endif()
  endif()
endif()
if(GLIMPROUTER_CUDA STREQUAL "OFF")
  set(architectures "")
endif()

if(architectures)
  set(GLIMPROUTER_HAS_CUDA ON)
  message(STATUS "glimprouter: CUDA kernels for ${architectures}")
else()
  set(GLIMPROUTER_HAS_CUDA OFF)
  message(STATUS "glimprouter: CPU only, no device code (${why_none})")
  return()
endif()

set(CMAKE_CUDA_ARCHITECTURES ${architectures})
enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know that this nvcc has it
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
file(GLOB GLIMPROUTER_CUDA_SOURCES CONFIGURE_DEPENDS csrc/cuda/*.cu)
add_library(glimprouter_cuda OBJECT ${GLIMPROUTER_CUDA_SOURCES})
target_include_directories(glimprouter_cuda PRIVATE csrc/include csrc .)
target_compile_options(glimprouter_cuda PRIVATE "-fmad=false;--expt-relaxed-constexpr;-Xptxas=-v")
set_target_properties(
  glimprouter_cuda PROPERTIES CUDA_STANDARD 20 CUDA_STANDARD_REQUIRED ON CUDA_RUNTIME_LIBRARY Static
                              CUDA_ARCHITECTURES "${architectures}"
                              CUDA_VISIBILITY_PRESET hidden POSITION_INDEPENDENT_CODE ON)
# The CUDA runtime is linked statically and no driver library at all: the same module loads on
# machines without CUDA.
target_sources(glimprouter_core PRIVATE $<TARGET_OBJECTS:glimprouter_cuda>)
string(REPLACE ";" " " architectures_text "${architectures}")
# Only the one file that asks for it: all others are compiled the same with device code and without.
set_source_files_properties(csrc/device/device_backend.cpp PROPERTIES COMPILE_DEFINITIONS
                                                                      GLIMPROUTER_HAS_CUDA)
target_compile_definitions(
  glimprouter_core
  INTERFACE "$<BUILD_INTERFACE:GLIMPROUTER_CUDA_ARCHITECTURES=\"${architectures_text}\">")
find_package(CUDAToolkit REQUIRED)
target_link_libraries(glimprouter_core PUBLIC $<LINK_ONLY:CUDA::cudart_static>)
