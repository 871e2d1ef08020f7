#include "emulator/context.hpp"

#include <cstdint>
#include <cstring>

#if defined(GLIMPROUTER_SIMT_ASSEMBLY)
extern "C" void glimprouter_simt_switch(void** saved_stack_pointer, void* stack_pointer);
#endif

// Only what a function call must preserve: the caller's compiler has saved the rest.
#if defined(GLIMPROUTER_SIMT_ASSEMBLY) && defined(__x86_64__)
asm(R"(
.text
.globl glimprouter_simt_switch
.type glimprouter_simt_switch, @function
glimprouter_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rax
  jmpq *%rax
.size glimprouter_simt_switch, .-glimprouter_simt_switch
)");
#elif defined(GLIMPROUTER_SIMT_ASSEMBLY)
asm(R"(
.text
.globl glimprouter_simt_switch
.type glimprouter_simt_switch, %function
glimprouter_simt_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size glimprouter_simt_switch, .-glimprouter_simt_switch
)");
#endif

namespace glimprouter::simt {

#if defined(GLIMPROUTER_SIMT_ASSEMBLY)

void prepare_context(Context& context, std::byte*, std::byte* top, void (*entry)()) {
#if defined(__x86_64__)
  // Six registers, then the address to go to, then 8 bytes where a caller's address would be: a
  // function is entered with its stack pointer 8 past a multiple of 16.
  constexpr std::size_t kFrame = 64;
  constexpr std::size_t kEntry = 48;
#else
  constexpr std::size_t kFrame = 160;
  constexpr std::size_t kEntry = 88;  // x30
#endif
  std::byte* frame = top - kFrame;
  std::memset(frame, 0, kFrame);
  std::memcpy(frame + kEntry, &entry, sizeof entry);
  context.stack_pointer = frame;
}

void switch_context(Context& from, Context& to) {
  glimprouter_simt_switch(&from.stack_pointer, to.stack_pointer);
}

#else

void prepare_context(Context& context, std::byte* bottom, std::byte* top, void (*entry)()) {
  getcontext(&context.registers);
  context.registers.uc_stack.ss_sp = bottom;
  context.registers.uc_stack.ss_size = static_cast<std::size_t>(top - bottom);
  context.registers.uc_link = nullptr;
  makecontext(&context.registers, entry, 0);
}

void switch_context(Context& from, Context& to) { swapcontext(&from.registers, &to.registers); }

#endif

}  // namespace glimprouter::simt
