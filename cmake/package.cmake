# The C++ package: static library, public headers, what find_package(glimprouter) reads. Inside the
# Python package where that is built (glimprouter.get_cmake_dir()), else where CMake installs.
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)
if(GLIMPROUTER_BUILD_PYTHON)
  set(component python)
  set(include_dir glimprouter/include)
  set(library_dir glimprouter/lib)
else()
  set(component cpp)
  set(include_dir ${CMAKE_INSTALL_INCLUDEDIR})
  set(library_dir ${CMAKE_INSTALL_LIBDIR})
endif()
set(package_dir ${library_dir}/cmake/glimprouter)

set_target_properties(glimprouter_core PROPERTIES EXPORT_NAME glimprouter OUTPUT_NAME glimprouter)
target_include_directories(glimprouter_core INTERFACE $<INSTALL_INTERFACE:${include_dir}>)
install(TARGETS glimprouter_core EXPORT glimprouter
        ARCHIVE DESTINATION ${library_dir} COMPONENT ${component})
install(DIRECTORY csrc/include/ DESTINATION ${include_dir} COMPONENT ${component})
install(EXPORT glimprouter NAMESPACE glimprouter:: DESTINATION ${package_dir}
        FILE glimprouterTargets.cmake COMPONENT ${component})
configure_package_config_file(cmake/glimprouterConfig.cmake.in glimprouterConfig.cmake
                              INSTALL_DESTINATION ${package_dir})
# No promise of compatibility before 1.0: the very version.
write_basic_package_version_file(glimprouterConfigVersion.cmake COMPATIBILITY ExactVersion)
install(FILES ${PROJECT_BINARY_DIR}/glimprouterConfig.cmake
              ${PROJECT_BINARY_DIR}/glimprouterConfigVersion.cmake
        DESTINATION ${package_dir} COMPONENT ${component})
