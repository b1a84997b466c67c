# Two properties of the library that no compiler checks:
#
# 1. It shows hd_* and nothing else.
# 2. No file built for one ISA has a symbol that others may share. Of a weak symbol (an inline function, a template) the
#    linker keeps one copy; were it the AVX-512 one, a CPU without AVX-512 would die in a function nobody suspects. Weak
#    symbols are therefore allowed only inside that ISA's own namespace, herder::isa_<name>.
function(symbols_of file out)
  execute_process(COMMAND ${NM} ${ARGN} ${file} OUTPUT_VARIABLE text RESULT_VARIABLE status)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${NM} cannot read ${file}")
  endif()
  string(REPLACE "\n" ";" lines "${text}")
  set(${out} ${lines} PARENT_SCOPE)
endfunction()

set(wrong "")
symbols_of(${LIBRARY} symbols --dynamic --defined-only)
foreach(symbol ${symbols})
  if(NOT symbol MATCHES " T hd_[a-z_]+$")
    list(APPEND wrong "${LIBRARY} shows: ${symbol}")
  endif()
endforeach()

set(checked 0)
foreach(object ${OBJECTS})
  if(object MATCHES "/isa/([a-z0-9]+)\\.cpp\\.o")
    set(isa ${CMAKE_MATCH_1})
    math(EXPR checked "${checked} + 1")
    symbols_of(${object} symbols --defined-only)
    foreach(symbol ${symbols})
      if(symbol MATCHES " [VWu] " AND NOT symbol MATCHES "6herder[0-9]+isa_${isa}[^a-z0-9]*[0-9A-Z]")
        list(APPEND wrong "${isa} lends: ${symbol}")
      endif()
    endforeach()
  endif()
endforeach()
if(checked EQUAL 0)
  list(APPEND wrong "no object of native/src/isa was found among ${OBJECTS}")
endif()

if(wrong)
  string(REPLACE ";" "\n" wrong "${wrong}")
  message(FATAL_ERROR "${wrong}")
endif()
