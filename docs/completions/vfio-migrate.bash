_vfio__migrate() {
    local i cur prev opts cmd
    COMPREPLY=()
    if [[ "${BASH_VERSINFO[0]}" -ge 4 ]]; then
        cur="$2"
    else
        cur="${COMP_WORDS[COMP_CWORD]}"
    fi
    prev="$3"
    cmd=""
    opts=""

    for i in "${COMP_WORDS[@]:0:COMP_CWORD}"
    do
        case "${cmd},${i}" in
            ",$1")
                cmd="vfio__migrate"
                ;;
            vfio__migrate,compat)
                cmd="vfio__migrate__subcmd__compat"
                ;;
            vfio__migrate,conform)
                cmd="vfio__migrate__subcmd__conform"
                ;;
            vfio__migrate,decode)
                cmd="vfio__migrate__subcmd__decode"
                ;;
            vfio__migrate,demo)
                cmd="vfio__migrate__subcmd__demo"
                ;;
            vfio__migrate,dirty)
                cmd="vfio__migrate__subcmd__dirty"
                ;;
            vfio__migrate,guest)
                cmd="vfio__migrate__subcmd__guest"
                ;;
            vfio__migrate,help)
                cmd="vfio__migrate__subcmd__help"
                ;;
            vfio__migrate,probe)
                cmd="vfio__migrate__subcmd__probe"
                ;;
            vfio__migrate,receive)
                cmd="vfio__migrate__subcmd__receive"
                ;;
            vfio__migrate,restore)
                cmd="vfio__migrate__subcmd__restore"
                ;;
            vfio__migrate,save)
                cmd="vfio__migrate__subcmd__save"
                ;;
            vfio__migrate,send)
                cmd="vfio__migrate__subcmd__send"
                ;;
            vfio__migrate,serve)
                cmd="vfio__migrate__subcmd__serve"
                ;;
            vfio__migrate,start)
                cmd="vfio__migrate__subcmd__start"
                ;;
            vfio__migrate,states)
                cmd="vfio__migrate__subcmd__states"
                ;;
            vfio__migrate__subcmd__guest,ctl)
                cmd="vfio__migrate__subcmd__guest__subcmd__ctl"
                ;;
            vfio__migrate__subcmd__guest,help)
                cmd="vfio__migrate__subcmd__guest__subcmd__help"
                ;;
            vfio__migrate__subcmd__guest,receive)
                cmd="vfio__migrate__subcmd__guest__subcmd__receive"
                ;;
            vfio__migrate__subcmd__guest,run)
                cmd="vfio__migrate__subcmd__guest__subcmd__run"
                ;;
            vfio__migrate__subcmd__guest__subcmd__ctl,cancel)
                cmd="vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__cancel"
                ;;
            vfio__migrate__subcmd__guest__subcmd__ctl,help)
                cmd="vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__help"
                ;;
            vfio__migrate__subcmd__guest__subcmd__ctl,migrate)
                cmd="vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__migrate"
                ;;
            vfio__migrate__subcmd__guest__subcmd__ctl,pause)
                cmd="vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__pause"
                ;;
            vfio__migrate__subcmd__guest__subcmd__ctl,quit)
                cmd="vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__quit"
                ;;
            vfio__migrate__subcmd__guest__subcmd__ctl,receive)
                cmd="vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__receive"
                ;;
            vfio__migrate__subcmd__guest__subcmd__ctl,resume)
                cmd="vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__resume"
                ;;
            vfio__migrate__subcmd__guest__subcmd__ctl,set-rate)
                cmd="vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__set__subcmd__rate"
                ;;
            vfio__migrate__subcmd__guest__subcmd__ctl,snapshot)
                cmd="vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__snapshot"
                ;;
            vfio__migrate__subcmd__guest__subcmd__ctl,status)
                cmd="vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__status"
                ;;
            vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__help,cancel)
                cmd="vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__help__subcmd__cancel"
                ;;
            vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__help,help)
                cmd="vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__help__subcmd__help"
                ;;
            vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__help,migrate)
                cmd="vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__help__subcmd__migrate"
                ;;
            vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__help,pause)
                cmd="vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__help__subcmd__pause"
                ;;
            vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__help,quit)
                cmd="vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__help__subcmd__quit"
                ;;
            vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__help,receive)
                cmd="vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__help__subcmd__receive"
                ;;
            vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__help,resume)
                cmd="vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__help__subcmd__resume"
                ;;
            vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__help,set-rate)
                cmd="vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__help__subcmd__set__subcmd__rate"
                ;;
            vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__help,snapshot)
                cmd="vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__help__subcmd__snapshot"
                ;;
            vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__help,status)
                cmd="vfio__migrate__subcmd__guest__subcmd__ctl__subcmd__help__subcmd__status"
                ;;
            vfio__migrate__subcmd__guest__subcmd__help,ctl)
                cmd="vfio__migrate__subcmd__guest__subcmd__help__subcmd__ctl"
                ;;
            vfio__migrate__subcmd__guest__subcmd__help,help)
                cmd="vfio__migrate__subcmd__guest__subcmd__help__subcmd__help"
                ;;
            vfio__migrate__subcmd__guest__subcmd__help,receive)
                cmd="vfio__migrate__subcmd__guest__subcmd__help__subcmd__receive"
                ;;
            vfio__migrate__subcmd__guest__subcmd__help,run)
                cmd="vfio__migrate__subcmd__guest__subcmd__help__subcmd__run"
                ;;
            vfio__migrate__subcmd__guest__subcmd__help__subcmd__ctl,cancel)
                cmd="vfio__migrate__subcmd__guest__subcmd__help__subcmd__ctl__subcmd__cancel"
                ;;
            vfio__migrate__subcmd__guest__subcmd__help__subcmd__ctl,migrate)
                cmd="vfio__migrate__subcmd__guest__subcmd__help__subcmd__ctl__subcmd__migrate"
                ;;
            vfio__migrate__subcmd__guest__subcmd__help__subcmd__ctl,pause)
                cmd="vfio__migrate__subcmd__guest__subcmd__help__subcmd__ctl__subcmd__pause"
                ;;
            vfio__migrate__subcmd__guest__subcmd__help__subcmd__ctl,quit)
                cmd="vfio__migrate__subcmd__guest__subcmd__help__subcmd__ctl__subcmd__quit"
                ;;
            vfio__migrate__subcmd__guest__subcmd__help__subcmd__ctl,receive)
                cmd="vfio__migrate__subcmd__guest__subcmd__help__subcmd__ctl__subcmd__receive"
                ;;
            vfio__migrate__subcmd__guest__subcmd__help__subcmd__ctl,resume)
                cmd="vfio__migrate__subcmd__guest__subcmd__help__subcmd__ctl__subcmd__resume"
                ;;
            vfio__migrate__subcmd__guest__subcmd__help__subcmd__ctl,set-rate)
                cmd="vfio__migrate__subcmd__guest__subcmd__help__subcmd__ctl__subcmd__set__subcmd__rate"
                ;;
            vfio__migrate__subcmd__guest__subcmd__help__subcmd__ctl,snapshot)
                cmd="vfio__migrate__subcmd__guest__subcmd__help__subcmd__ctl__subcmd__snapshot"
                ;;
            vfio__migrate__subcmd__guest__subcmd__help__subcmd__ctl,status)
                cmd="vfio__migrate__subcmd__guest__subcmd__help__subcmd__ctl__subcmd__status"
                ;;
            vfio__migrate__subcmd__help,compat)
                cmd="vfio__migrate__subcmd__help__subcmd__compat"
                ;;
            vfio__migrate__subcmd__help,conform)
                cmd="vfio__migrate__subcmd__help__subcmd__conform"
                ;;
            vfio__migrate__subcmd__help,decode)
                cmd="vfio__migrate__subcmd__help__subcmd__decode"
                ;;
            vfio__migrate__subcmd__help,demo)
                cmd="vfio__migrate__subcmd__help__subcmd__demo"
                ;;
            vfio__migrate__subcmd__help,dirty)
                cmd="vfio__migrate__subcmd__help__subcmd__dirty"
                ;;
            vfio__migrate__subcmd__help,guest)
                cmd="vfio__migrate__subcmd__help__subcmd__guest"
                ;;
            vfio__migrate__subcmd__help,help)
                cmd="vfio__migrate__subcmd__help__subcmd__help"
                ;;
            vfio__migrate__subcmd__help,probe)
                cmd="vfio__migrate__subcmd__help__subcmd__probe"
                ;;
            vfio__migrate__subcmd__help,receive)
                cmd="vfio__migrate__subcmd__help__subcmd__receive"
                ;;
            vfio__migrate__subcmd__help,restore)
                cmd="vfio__migrate__subcmd__help__subcmd__restore"
                ;;
            vfio__migrate__subcmd__help,save)
                cmd="vfio__migrate__subcmd__help__subcmd__save"
                ;;
            vfio__migrate__subcmd__help,send)
                cmd="vfio__migrate__subcmd__help__subcmd__send"
                ;;
            vfio__migrate__subcmd__help,serve)
                cmd="vfio__migrate__subcmd__help__subcmd__serve"
                ;;
            vfio__migrate__subcmd__help,start)
                cmd="vfio__migrate__subcmd__help__subcmd__start"
                ;;
            vfio__migrate__subcmd__help,states)
                cmd="vfio__migrate__subcmd__help__subcmd__states"
                ;;
            vfio__migrate__subcmd__help__subcmd__guest,ctl)
                cmd="vfio__migrate__subcmd__help__subcmd__guest__subcmd__ctl"
                ;;
            vfio__migrate__subcmd__help__subcmd__guest,receive)
                cmd="vfio__migrate__subcmd__help__subcmd__guest__subcmd__receive"
                ;;
            vfio__migrate__subcmd__help__subcmd__guest,run)
                cmd="vfio__migrate__subcmd__help__subcmd__guest__subcmd__run"
                ;;
            vfio__migrate__subcmd__help__subcmd__guest__subcmd__ctl,cancel)
                cmd="vfio__migrate__subcmd__help__subcmd__guest__subcmd__ctl__subcmd__cancel"
                ;;
            vfio__migrate__subcmd__help__subcmd__guest__subcmd__ctl,migrate)
                cmd="vfio__migrate__subcmd__help__subcmd__guest__subcmd__ctl__subcmd__migrate"
                ;;
            vfio__migrate__subcmd__help__subcmd__guest__subcmd__ctl,pause)
                cmd="vfio__migrate__subcmd__help__subcmd__guest__subcmd__ctl__subcmd__pause"
                ;;
            vfio__migrate__subcmd__help__subcmd__guest__subcmd__ctl,quit)
                cmd="vfio__migrate__subcmd__help__subcmd__guest__subcmd__ctl__subcmd__quit"
                ;;
            vfio__migrate__subcmd__help__subcmd__guest__subcmd__ctl,receive)
                cmd="vfio__migrate__subcmd__help__subcmd__guest__subcmd__ctl__subcmd__receive"
                ;;
            vfio__migrate__subcmd__help__subcmd__guest__subcmd__ctl,resume)
                cmd="vfio__migrate__subcmd__help__subcmd__guest__subcmd__ctl__subcmd__resume"
                ;;
            vfio__migrate__subcmd__help__subcmd__guest__subcmd__ctl,set-rate)
                cmd="vfio__migrate__subcmd__help__subcmd__guest__subcmd__ctl__subcmd__set__subcmd__rate"
                ;;
            vfio__migrate__subcmd__help__subcmd__guest__subcmd__ctl,snapshot)
                cmd="vfio__migrate__subcmd__help__subcmd__guest__subcmd__ctl__subcmd__snapshot"
                ;;
            vfio__migrate__subcmd__help__subcmd__guest__subcmd__ctl,status)
                cmd="vfio__migrate__subcmd__help__subcmd__guest__subcmd__ctl__subcmd__status"
                ;;
            *)
                ;;
        esac
    done

    case "${cmd}" in
        vfio__migrate)
            opts="-v -h -V --json --verbose --log --help --version demo serve guest save restore send receive start probe compat conform dirty decode states help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 1 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__compat)
            opts="-v -h -V --independent --json --verbose --log --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__conform)
            opts="-v -h -V --list --only --max-data --json --verbose --log --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --only)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --max-data)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__decode)
            opts="-v -h -V --summary --json --verbose --log --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__demo)
            opts="-v -h -V --model --matrix --repeat --devices --ports --capabilities --generation --guest-memory --device-memory --dirty-rate --dma-rate --p2p --vcpus --interrupts --downtime-limit --max-time --on-timeout --channels --rate --inject --json --verbose --log --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --model)
                    COMPREPLY=($(compgen -W "accel uart" -- "${cur}"))
                    return 0
                    ;;
                --repeat)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --devices)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --ports)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --capabilities)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --generation)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --guest-memory)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --device-memory)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --dirty-rate)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --dma-rate)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --vcpus)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --interrupts)
                    COMPREPLY=($(compgen -W "intx msi msix" -- "${cur}"))
                    return 0
                    ;;
                --downtime-limit)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --max-time)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --on-timeout)
                    COMPREPLY=($(compgen -W "fail switch" -- "${cur}"))
                    return 0
                    ;;
                --channels)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --rate)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --inject)
                    COMPREPLY=($(compgen -W "page device dirty-bit interrupt p2p-late" -- "${cur}"))
                    return 0
                    ;;
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__dirty)
            opts="-v -h -V --interval --duration --picture --memory --iova --watch-only --rate --json --verbose --log --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --interval)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --duration)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --picture)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --memory)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --iova)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --rate)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest)
            opts="-v -h -V --json --verbose --log --help --version run receive ctl help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__ctl)
            opts="-v -h -V --json --verbose --log --help --version status migrate snapshot receive cancel set-rate pause resume quit help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__ctl__subcmd__cancel)
            opts="-v -h -V --json --verbose --log --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 4 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__ctl__subcmd__help)
            opts="status migrate snapshot receive cancel set-rate pause resume quit help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 4 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__ctl__subcmd__help__subcmd__cancel)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__ctl__subcmd__help__subcmd__help)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__ctl__subcmd__help__subcmd__migrate)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__ctl__subcmd__help__subcmd__pause)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__ctl__subcmd__help__subcmd__quit)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__ctl__subcmd__help__subcmd__receive)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__ctl__subcmd__help__subcmd__resume)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__ctl__subcmd__help__subcmd__set__subcmd__rate)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__ctl__subcmd__help__subcmd__snapshot)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__ctl__subcmd__help__subcmd__status)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__ctl__subcmd__migrate)
            opts="-v -h -V --to --downtime-limit --max-time --on-timeout --channels --rate --json --verbose --log --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 4 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --to)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --downtime-limit)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --max-time)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --on-timeout)
                    COMPREPLY=($(compgen -W "fail switch" -- "${cur}"))
                    return 0
                    ;;
                --channels)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --rate)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__ctl__subcmd__pause)
            opts="-v -h -V --json --verbose --log --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 4 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__ctl__subcmd__quit)
            opts="-v -h -V --discard --json --verbose --log --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 4 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__ctl__subcmd__receive)
            opts="-v -h -V --from --json --verbose --log --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 4 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --from)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__ctl__subcmd__resume)
            opts="-v -h -V --json --verbose --log --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 4 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__ctl__subcmd__set__subcmd__rate)
            opts="-v -h -V --json --verbose --log --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 4 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__ctl__subcmd__snapshot)
            opts="-v -h -V --stop --replace --json --verbose --log --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 4 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__ctl__subcmd__status)
            opts="-v -h -V --json --verbose --log --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 4 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__help)
            opts="run receive ctl help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__help__subcmd__ctl)
            opts="status migrate snapshot receive cancel set-rate pause resume quit"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 4 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__help__subcmd__ctl__subcmd__cancel)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__help__subcmd__ctl__subcmd__migrate)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__help__subcmd__ctl__subcmd__pause)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__help__subcmd__ctl__subcmd__quit)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__help__subcmd__ctl__subcmd__receive)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__help__subcmd__ctl__subcmd__resume)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__help__subcmd__ctl__subcmd__set__subcmd__rate)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__help__subcmd__ctl__subcmd__snapshot)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__help__subcmd__ctl__subcmd__status)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__help__subcmd__help)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 4 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__help__subcmd__receive)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 4 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__help__subcmd__run)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 4 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__receive)
            opts="-v -h -V --from --memory --device --control --vcpus --dirty-rate --dma-rate --p2p --seed --digests --hold --json --verbose --log --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --from)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --memory)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --device)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --control)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --vcpus)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --dirty-rate)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --dma-rate)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --seed)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --digests)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__guest__subcmd__run)
            opts="-v -h -V --memory --device --control --vcpus --dirty-rate --dma-rate --p2p --seed --digests --from --paused --hold --inject --interrupts --json --verbose --log --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --memory)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --device)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --control)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --vcpus)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --dirty-rate)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --dma-rate)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --seed)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --digests)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --from)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --inject)
                    COMPREPLY=($(compgen -W "page device dirty-bit interrupt p2p-late" -- "${cur}"))
                    return 0
                    ;;
                --interrupts)
                    COMPREPLY=($(compgen -W "intx msi msix" -- "${cur}"))
                    return 0
                    ;;
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help)
            opts="demo serve guest save restore send receive start probe compat conform dirty decode states help"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__compat)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__conform)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__decode)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__demo)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__dirty)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__guest)
            opts="run receive ctl"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__guest__subcmd__ctl)
            opts="status migrate snapshot receive cancel set-rate pause resume quit"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 4 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__guest__subcmd__ctl__subcmd__cancel)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__guest__subcmd__ctl__subcmd__migrate)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__guest__subcmd__ctl__subcmd__pause)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__guest__subcmd__ctl__subcmd__quit)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__guest__subcmd__ctl__subcmd__receive)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__guest__subcmd__ctl__subcmd__resume)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__guest__subcmd__ctl__subcmd__set__subcmd__rate)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__guest__subcmd__ctl__subcmd__snapshot)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__guest__subcmd__ctl__subcmd__status)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 5 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__guest__subcmd__receive)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 4 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__guest__subcmd__run)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 4 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__help)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__probe)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__receive)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__restore)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__save)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__send)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__serve)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__start)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__help__subcmd__states)
            opts=""
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 3 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__probe)
            opts="-v -h -V --digest --json --verbose --log --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__receive)
            opts="-v -h -V --independent --from --json --verbose --log --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --from)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__restore)
            opts="-v -h -V --independent --input --start --json --verbose --log --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --input)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__save)
            opts="-v -h -V --independent --output --stop --replace --json --verbose --log --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --output)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__send)
            opts="-v -h -V --independent --to --downtime-limit --max-time --on-timeout --channels --rate --json --verbose --log --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --to)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --downtime-limit)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --max-time)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --on-timeout)
                    COMPREPLY=($(compgen -W "fail switch" -- "${cur}"))
                    return 0
                    ;;
                --channels)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --rate)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__serve)
            opts="-v -h -V --model --generation --data-section --socket --capabilities --ports --memory --mapped-window --firmware --vectors --msi --bars --reset-on-disconnect --name --json --verbose --log --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --model)
                    COMPREPLY=($(compgen -W "accel uart" -- "${cur}"))
                    return 0
                    ;;
                --generation)
                    COMPREPLY=($(compgen -W "v2 v1 rfc2018" -- "${cur}"))
                    return 0
                    ;;
                --data-section)
                    COMPREPLY=($(compgen -W "trapped mapped split" -- "${cur}"))
                    return 0
                    ;;
                --socket)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --capabilities)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --ports)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --memory)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --mapped-window)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --firmware)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --vectors)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --msi)
                    COMPREPLY=($(compgen -W "none 32 32-masks 64 64-masks" -- "${cur}"))
                    return 0
                    ;;
                --bars)
                    COMPREPLY=($(compgen -W "registers-first memory-first" -- "${cur}"))
                    return 0
                    ;;
                --name)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__start)
            opts="-v -h -V --independent --reset --json --verbose --log --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
        vfio__subcmd__migrate__subcmd__states)
            opts="-v -h -V --capabilities --format --json --verbose --log --help --version"
            if [[ ${cur} == -* || ${COMP_CWORD} -eq 2 ]] ; then
                COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
                return 0
            fi
            case "${prev}" in
                --capabilities)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                --format)
                    COMPREPLY=($(compgen -W "table mermaid dot" -- "${cur}"))
                    return 0
                    ;;
                --log)
                    COMPREPLY=($(compgen -f "${cur}"))
                    return 0
                    ;;
                *)
                    COMPREPLY=()
                    ;;
            esac
            COMPREPLY=( $(compgen -W "${opts}" -- "${cur}") )
            return 0
            ;;
    esac
}

if [[ "${BASH_VERSINFO[0]}" -eq 4 && "${BASH_VERSINFO[1]}" -ge 4 || "${BASH_VERSINFO[0]}" -gt 4 ]]; then
    complete -F _vfio__migrate -o nosort -o bashdefault -o default vfio-migrate
else
    complete -F _vfio__migrate -o bashdefault -o default vfio-migrate
fi
