# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_vfio_migrate_global_optspecs
    string join \n json v/verbose log= h/help V/version
end

function __fish_vfio_migrate_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_vfio_migrate_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_vfio_migrate_using_subcommand
    set -l cmd (__fish_vfio_migrate_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c vfio-migrate -n "__fish_vfio_migrate_needs_command" -l log -d 'Write the log to this file instead of standard error, with every state change' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_needs_command" -l json -d 'JSON on standard output, one object a line, on failure too; progress goes to standard error'
complete -c vfio-migrate -n "__fish_vfio_migrate_needs_command" -s v -l verbose -d 'Show every state change with before, after and microseconds; -vv shows more'
complete -c vfio-migrate -n "__fish_vfio_migrate_needs_command" -s h -l help -d 'Print help'
complete -c vfio-migrate -n "__fish_vfio_migrate_needs_command" -s V -l version -d 'Print version'
complete -c vfio-migrate -n "__fish_vfio_migrate_needs_command" -f -a "demo" -d 'Migrate a running guest with its devices between processes of this host, and check every byte'
complete -c vfio-migrate -n "__fish_vfio_migrate_needs_command" -f -a "serve" -d 'Serve a device over vfio-user'
complete -c vfio-migrate -n "__fish_vfio_migrate_needs_command" -f -a "guest" -d 'The software guest: run it, receive it, control it'
complete -c vfio-migrate -n "__fish_vfio_migrate_needs_command" -f -a "save" -d 'Save devices that no guest uses into a file'
complete -c vfio-migrate -n "__fish_vfio_migrate_needs_command" -f -a "restore" -d 'Restore devices that no guest uses from a file'
complete -c vfio-migrate -n "__fish_vfio_migrate_needs_command" -f -a "send" -d 'Send devices that no guest uses to another host'
complete -c vfio-migrate -n "__fish_vfio_migrate_needs_command" -f -a "receive" -d 'Receive devices that no guest uses from another host, once'
complete -c vfio-migrate -n "__fish_vfio_migrate_needs_command" -f -a "start" -d 'Let devices run that save, restore or a broken migration left stopped'
complete -c vfio-migrate -n "__fish_vfio_migrate_needs_command" -f -a "probe" -d 'Ask a device who it is and what a migration can do with it'
complete -c vfio-migrate -n "__fish_vfio_migrate_needs_command" -f -a "compat" -d 'Whether the data of one device, or of a saved file, fits another device'
complete -c vfio-migrate -n "__fish_vfio_migrate_needs_command" -f -a "conform" -d 'Check a device against the rules of the migration interface. THIS DESTROYS WHAT IT HOLDS'
complete -c vfio-migrate -n "__fish_vfio_migrate_needs_command" -f -a "dirty" -d 'Show which memory a device writes, without any migration'
complete -c vfio-migrate -n "__fish_vfio_migrate_needs_command" -f -a "decode" -d 'Show a saved file or a captured stream frame by frame, whole or damaged'
complete -c vfio-migrate -n "__fish_vfio_migrate_needs_command" -f -a "states" -d 'Show the migration state machine'
complete -c vfio-migrate -n "__fish_vfio_migrate_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -l model -d 'The model of the devices' -r -f -a "accel\t'An accelerator: memory of its own, DMA, interrupts, writes to its peers'
uart\t'A card with one or two serial ports (16550), as the kernel\'s mtty sample'"
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -l repeat -d 'Migrate so many times, there and back again in the same two guest processes; each is checked, and the first that is not verified ends it. With --json every report is a line, and the last line is what they all come to' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -l devices -d 'Devices of the guest, 1 to 8 [default: 2] [in the matrix: 1]' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -l ports -d 'Ports of each uart' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -l capabilities -d 'The devices\' migration capabilities: 1 stop-copy, 3 and P2P, 5 and pre-copy, 7 all' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -l generation -d 'The generation of the devices\' migration interface, v2, v1 or rfc2018, or that of the source\'s and the destination\'s: SOURCE:DESTINATION' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -l guest-memory -d 'Guest memory [default: 512M] [with --repeat: 128M] [in the matrix: 16M]' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -l device-memory -d 'Memory of each accelerator, a power of two from 16M to 16G [default: 64M] [with --repeat: 32M] [in the matrix: 16M]' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -l dirty-rate -d 'How much memory the guest rewrites a second' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -l dma-rate -d 'How much each accelerator copies a second; 0 leaves devices of any model idle' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -l vcpus -d 'vCPUs of the guest, 1 to 62' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -l interrupts -d 'How the devices interrupt the guest [default: the best way that each one has]' -r -f -a "intx\t''
msi\t''
msix\t''"
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -l downtime-limit -d 'Stop the guest when that takes at most so many milliseconds' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -l max-time -d 'How many seconds pre-copy may take' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -l on-timeout -d 'After that time: give up with the source running, or stop the guest all the same' -r -f -a "fail\t'Give up; the source runs on'
switch\t'Stop the guest all the same'"
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -l channels -d 'Data connections' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -l rate -d 'The most that all data connections together send in a second [default: no limit]' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -l inject -d 'Break one thing, which the check must then find (exit status 1): a byte of a page, before it is checksummed for the stream; a byte that a device holds, before or in its save; a dirty bit, forgotten; interrupts that wait, dropped; or let one peer write through after its target stopped (implies --p2p). With --repeat, in the first migration' -r -f -a "page\t''
device\t''
dirty-bit\t''
interrupt\t''
p2p-late\t''"
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -l log -d 'Write the log to this file instead of standard error, with every state change' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -l matrix -d 'Migrate each model from each generation to each, one migration after the other, and report each (with --json, one a line). Exit status 1 where not all of them were verified'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -l p2p -d 'Let accelerators write into each other; devices without P2P (sets 1 and 5, and all of v1 and rfc2018) are then refused where there are two or more'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -l json -d 'JSON on standard output, one object a line, on failure too; progress goes to standard error'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -s v -l verbose -d 'Show every state change with before, after and microseconds; -vv shows more'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand demo" -s V -l version -d 'Print version'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand serve" -l model -d 'The device model' -r -f -a "accel\t'An accelerator: memory of its own, DMA, interrupts, writes to its peers'
uart\t'A card with one or two serial ports (16550), as the kernel\'s mtty sample'"
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand serve" -l generation -d 'The generation of the migration interface: features (v2), or a migration region (v1, rfc2018)' -r -f -a "v2\t'The features of Linux 5.18 and later'
v1\t'The migration region of Linux 5.8 to 5.17'
rfc2018\t'The migration region of the RFC of 2018'"
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand serve" -l data-section -d 'How clients reach the data of a migration region: every access is trapped, all of it is mapped, or its first page is trapped and the rest mapped' -r -f -a "trapped\t'By reads and writes'
mapped\t'Through a mapping'
split\t'The first page by reads and writes, the rest through a mapping'"
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand serve" -l socket -d 'The socket to listen at; made for this user alone, and removed at the end' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand serve" -l capabilities -d 'Migration capabilities: 1 stop-copy, 3 and P2P, 5 and pre-copy, 7 all' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand serve" -l ports -d 'Ports of the uart' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand serve" -l memory -d 'The accelerator\'s own memory, a power of two from 16M to 16G' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand serve" -l mapped-window -d 'The part of that memory which clients map; it always goes in stop-copy' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand serve" -l firmware -d 'The part behind the window that holds firmware (a pattern) from the start and after a reset; it is saved like everything else' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand serve" -l vectors -d 'How many vectors the accelerator has, by MSI-X and, up to the next power of two, by MSI' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand serve" -l msi -d 'What MSI the accelerator has, with addresses of 32 or 64 bits' -r -f -a "none\t'None, only INTx and MSI-X'
32\t'Addresses of 32 bits'
32-masks\t'Addresses of 32 bits, and a mask for each vector'
64\t'Addresses of 64 bits'
64-masks\t'Addresses of 64 bits, and a mask for each vector'"
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand serve" -l bars -d 'Which BARs of the accelerator are what: for a destination that has to be refused, since whoever drives one expects the registers first' -r -f -a "registers-first\t'Registers in BAR0, memory in BAR2 and BAR3'
memory-first\t'Memory in BAR0 and BAR1, registers in BAR2'"
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand serve" -l name -d 'What to call the device in the log [default: the socket\'s file name]' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand serve" -l log -d 'Write the log to this file instead of standard error, with every state change' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand serve" -l reset-on-disconnect -d 'Reset the device whenever its client goes away'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand serve" -l json -d 'JSON on standard output, one object a line, on failure too; progress goes to standard error'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand serve" -s v -l verbose -d 'Show every state change with before, after and microseconds; -vv shows more'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand serve" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand serve" -s V -l version -d 'Print version'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and not __fish_seen_subcommand_from run receive ctl help" -l log -d 'Write the log to this file instead of standard error, with every state change' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and not __fish_seen_subcommand_from run receive ctl help" -l json -d 'JSON on standard output, one object a line, on failure too; progress goes to standard error'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and not __fish_seen_subcommand_from run receive ctl help" -s v -l verbose -d 'Show every state change with before, after and microseconds; -vv shows more'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and not __fish_seen_subcommand_from run receive ctl help" -s h -l help -d 'Print help'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and not __fish_seen_subcommand_from run receive ctl help" -s V -l version -d 'Print version'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and not __fish_seen_subcommand_from run receive ctl help" -f -a "run" -d 'Run a guest here'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and not __fish_seen_subcommand_from run receive ctl help" -f -a "receive" -d 'Receive a guest here and run it'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and not __fish_seen_subcommand_from run receive ctl help" -f -a "ctl" -d 'Ask or tell a guest something, over its control socket'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and not __fish_seen_subcommand_from run receive ctl help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from run" -l memory -d 'Guest memory' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from run" -l device -d 'A device, vfio-user:PATH; once for each, in the same order on both sides' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from run" -l control -d 'The control socket to make, for this user alone' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from run" -l vcpus -d 'vCPUs, 1 to 62' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from run" -l dirty-rate -d 'How much memory the vCPUs rewrite a second' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from run" -l dma-rate -d 'How much each device copies a second' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from run" -l seed -d 'Where the vCPUs\' random numbers start' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from run" -l digests -d 'Write digests of memory and devices to this file when the guest is stopped for a migration (source) and before it is taken over (destination)' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from run" -l from -d 'Do not boot one, but run the one that `guest ctl snapshot` saved in this file, in the same machine; - is standard input' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from run" -l inject -d 'Break one thing in the next migration, for a check to find' -r -f -a "page\t''
device\t''
dirty-bit\t''
interrupt\t''
p2p-late\t''"
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from run" -l interrupts -d 'How the devices interrupt the guest [default: the best way that each has]' -r -f -a "intx\t''
msi\t''
msix\t''"
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from run" -l log -d 'Write the log to this file instead of standard error, with every state change' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from run" -l p2p -d 'Let the devices write into each other'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from run" -l paused -d 'Start it paused'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from run" -l hold -d 'Do not stop the guest in a migration before every page and every device block changed that its rates do not leave idle'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from run" -l json -d 'JSON on standard output, one object a line, on failure too; progress goes to standard error'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from run" -s v -l verbose -d 'Show every state change with before, after and microseconds; -vv shows more'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from run" -s h -l help -d 'Print help'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from run" -s V -l version -d 'Print version'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from receive" -l from -d 'Where to listen for it: tcp:HOST:PORT (port 0: any free one) or unix:PATH' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from receive" -l memory -d 'Guest memory' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from receive" -l device -d 'A device, vfio-user:PATH; once for each, in the same order on both sides' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from receive" -l control -d 'The control socket to make, for this user alone' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from receive" -l vcpus -d 'vCPUs, 1 to 62' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from receive" -l dirty-rate -d 'How much memory the vCPUs rewrite a second' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from receive" -l dma-rate -d 'How much each device copies a second' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from receive" -l seed -d 'Where the vCPUs\' random numbers start' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from receive" -l digests -d 'Write digests of memory and devices to this file when the guest is stopped for a migration (source) and before it is taken over (destination)' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from receive" -l log -d 'Write the log to this file instead of standard error, with every state change' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from receive" -l p2p -d 'Let the devices write into each other'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from receive" -l hold -d 'As in run, once the guest migrates from here'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from receive" -l json -d 'JSON on standard output, one object a line, on failure too; progress goes to standard error'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from receive" -s v -l verbose -d 'Show every state change with before, after and microseconds; -vv shows more'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from receive" -s h -l help -d 'Print help'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from receive" -s V -l version -d 'Print version'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from ctl" -l log -d 'Write the log to this file instead of standard error, with every state change' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from ctl" -l json -d 'JSON on standard output, one object a line, on failure too; progress goes to standard error'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from ctl" -s v -l verbose -d 'Show every state change with before, after and microseconds; -vv shows more'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from ctl" -s h -l help -d 'Print help'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from ctl" -s V -l version -d 'Print version'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from ctl" -a "status" -d 'What it does, what would keep it from migrating, and how far a migration is'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from ctl" -a "migrate" -d 'Move it, and wait for the end; Ctrl-C cancels'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from ctl" -a "snapshot" -d 'Save it in a file, for `guest run --from`, and wait for the end; Ctrl-C cancels'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from ctl" -a "receive" -d 'Take a guest in again, once the one that was here has moved away: what that left behind is thrown away. Says where it is awaited; cancel ends that'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from ctl" -a "cancel" -d 'Cancel the migration or the snapshot under way, or the wait for a guest'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from ctl" -a "set-rate" -d 'Let the migration under way send at most so much in a second'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from ctl" -a "pause" -d 'Pause the guest and its devices'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from ctl" -a "resume" -d 'Let them go on'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from ctl" -a "quit" -d 'End the process'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from ctl" -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from help" -f -a "run" -d 'Run a guest here'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from help" -f -a "receive" -d 'Receive a guest here and run it'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from help" -f -a "ctl" -d 'Ask or tell a guest something, over its control socket'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand guest; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand save" -l output -d 'The file to make, under its name only once it is whole; - is standard output' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand save" -l log -d 'Write the log to this file instead of standard error, with every state change' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand save" -l independent -d 'No device writes into another: several without P2P may then be stopped together'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand save" -l stop -d 'Leave the devices stopped; otherwise they run on'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand save" -l replace -d 'Replace a file of that name'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand save" -l json -d 'JSON on standard output, one object a line, on failure too; progress goes to standard error'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand save" -s v -l verbose -d 'Show every state change with before, after and microseconds; -vv shows more'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand save" -s h -l help -d 'Print help'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand save" -s V -l version -d 'Print version'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand restore" -l input -d 'A file that `save` made; - is standard input' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand restore" -l log -d 'Write the log to this file instead of standard error, with every state change' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand restore" -l independent -d 'No device writes into another: several without P2P may then be stopped together'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand restore" -l start -d 'Let the devices run; otherwise they are left in STOP'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand restore" -l json -d 'JSON on standard output, one object a line, on failure too; progress goes to standard error'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand restore" -s v -l verbose -d 'Show every state change with before, after and microseconds; -vv shows more'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand restore" -s h -l help -d 'Print help'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand restore" -s V -l version -d 'Print version'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand send" -l to -d 'Where a `receive` listens: tcp:HOST:PORT or unix:PATH' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand send" -l downtime-limit -d 'Stop the guest when that takes at most so many milliseconds' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand send" -l max-time -d 'How many seconds pre-copy may take' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand send" -l on-timeout -d 'After that time: give up with the source running, or stop the guest all the same' -r -f -a "fail\t'Give up; the source runs on'
switch\t'Stop the guest all the same'"
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand send" -l channels -d 'Data connections' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand send" -l rate -d 'The most that all data connections together send in a second [default: no limit]' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand send" -l log -d 'Write the log to this file instead of standard error, with every state change' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand send" -l independent -d 'No device writes into another: several without P2P may then be stopped together'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand send" -l json -d 'JSON on standard output, one object a line, on failure too; progress goes to standard error'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand send" -s v -l verbose -d 'Show every state change with before, after and microseconds; -vv shows more'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand send" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand send" -s V -l version -d 'Print version'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand receive" -l from -d 'Where to listen for one migration: tcp:HOST:PORT (port 0: any free one) or unix:PATH' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand receive" -l log -d 'Write the log to this file instead of standard error, with every state change' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand receive" -l independent -d 'No device writes into another: several without P2P may then be stopped together'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand receive" -l json -d 'JSON on standard output, one object a line, on failure too; progress goes to standard error'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand receive" -s v -l verbose -d 'Show every state change with before, after and microseconds; -vv shows more'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand receive" -s h -l help -d 'Print help'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand receive" -s V -l version -d 'Print version'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand start" -l log -d 'Write the log to this file instead of standard error, with every state change' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand start" -l independent -d 'No device writes into another: several without P2P may then be stopped together'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand start" -l reset -d 'Empty them first: what they hold is gone'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand start" -l json -d 'JSON on standard output, one object a line, on failure too; progress goes to standard error'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand start" -s v -l verbose -d 'Show every state change with before, after and microseconds; -vv shows more'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand start" -s h -l help -d 'Print help'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand start" -s V -l version -d 'Print version'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand probe" -l log -d 'Write the log to this file instead of standard error, with every state change' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand probe" -l digest -d 'Also ask it for a digest of what it holds: compare only devices that are stopped'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand probe" -l json -d 'JSON on standard output, one object a line, on failure too; progress goes to standard error'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand probe" -s v -l verbose -d 'Show every state change with before, after and microseconds; -vv shows more'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand probe" -s h -l help -d 'Print help'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand probe" -s V -l version -d 'Print version'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand compat" -l log -d 'Write the log to this file instead of standard error, with every state change' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand compat" -l independent -d 'No device writes into another: several without P2P may then be moved together'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand compat" -l json -d 'JSON on standard output, one object a line, on failure too; progress goes to standard error'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand compat" -s v -l verbose -d 'Show every state change with before, after and microseconds; -vv shows more'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand compat" -s h -l help -d 'Print help'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand compat" -s V -l version -d 'Print version'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand conform" -l only -d 'Only the checks of this rule (its number) or the one with this id; may be repeated' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand conform" -l max-data -d 'Skip what needs the data of a device that has more of it' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand conform" -l log -d 'Write the log to this file instead of standard error, with every state change' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand conform" -l list -d 'Show the checks, and run none'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand conform" -l json -d 'JSON on standard output, one object a line, on failure too; progress goes to standard error'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand conform" -s v -l verbose -d 'Show every state change with before, after and microseconds; -vv shows more'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand conform" -s h -l help -d 'Print help'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand conform" -s V -l version -d 'Print version'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand dirty" -l interval -d 'How often its log is asked, such as 10ms or 2s: a line each time' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand dirty" -l duration -d 'How long, such as 30s, 5m or 24h' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand dirty" -l picture -d 'Draw what was written by address and time into this file (SVG); a picture that is there already is replaced at the end' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand dirty" -l memory -d 'How much memory is lent to the device and watched' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand dirty" -l iova -d 'The address (IOVA) at which the device finds it' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand dirty" -l rate -d 'How fast an accelerator (`serve --model accel`) that no driver runs is made to write; 0 leaves it as it is' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand dirty" -l log -d 'Write the log to this file instead of standard error, with every state change' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand dirty" -l watch-only -d 'Lend no memory and start nothing: only watch these addresses, of a device whose memory a launcher has mapped'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand dirty" -l json -d 'JSON on standard output, one object a line, on failure too; progress goes to standard error'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand dirty" -s v -l verbose -d 'Show every state change with before, after and microseconds; -vv shows more'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand dirty" -s h -l help -d 'Print help'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand dirty" -s V -l version -d 'Print version'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand decode" -l log -d 'Write the log to this file instead of standard error, with every state change' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand decode" -l summary -d 'One line for consecutive frames of a device\'s data, of guest memory or of a section, instead of one for each'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand decode" -l json -d 'JSON on standard output, one object a line, on failure too; progress goes to standard error'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand decode" -s v -l verbose -d 'Show every state change with before, after and microseconds; -vv shows more'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand decode" -s h -l help -d 'Print help'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand decode" -s V -l version -d 'Print version'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand states" -l capabilities -d 'For devices with these capabilities: 1, 3, 5 or 7' -r
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand states" -l format -d 'A table of paths, or a diagram of arcs for mermaid or Graphviz' -r -f -a "table\t'The path from every state to every other'
mermaid\t'The arcs, as a mermaid diagram'
dot\t'The arcs, as a graph for Graphviz (`dot -Tsvg`)'"
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand states" -l log -d 'Write the log to this file instead of standard error, with every state change' -r -F
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand states" -l json -d 'JSON on standard output, one object a line, on failure too; progress goes to standard error'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand states" -s v -l verbose -d 'Show every state change with before, after and microseconds; -vv shows more'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand states" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand states" -s V -l version -d 'Print version'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand help; and not __fish_seen_subcommand_from demo serve guest save restore send receive start probe compat conform dirty decode states help" -f -a "demo" -d 'Migrate a running guest with its devices between processes of this host, and check every byte'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand help; and not __fish_seen_subcommand_from demo serve guest save restore send receive start probe compat conform dirty decode states help" -f -a "serve" -d 'Serve a device over vfio-user'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand help; and not __fish_seen_subcommand_from demo serve guest save restore send receive start probe compat conform dirty decode states help" -f -a "guest" -d 'The software guest: run it, receive it, control it'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand help; and not __fish_seen_subcommand_from demo serve guest save restore send receive start probe compat conform dirty decode states help" -f -a "save" -d 'Save devices that no guest uses into a file'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand help; and not __fish_seen_subcommand_from demo serve guest save restore send receive start probe compat conform dirty decode states help" -f -a "restore" -d 'Restore devices that no guest uses from a file'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand help; and not __fish_seen_subcommand_from demo serve guest save restore send receive start probe compat conform dirty decode states help" -f -a "send" -d 'Send devices that no guest uses to another host'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand help; and not __fish_seen_subcommand_from demo serve guest save restore send receive start probe compat conform dirty decode states help" -f -a "receive" -d 'Receive devices that no guest uses from another host, once'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand help; and not __fish_seen_subcommand_from demo serve guest save restore send receive start probe compat conform dirty decode states help" -f -a "start" -d 'Let devices run that save, restore or a broken migration left stopped'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand help; and not __fish_seen_subcommand_from demo serve guest save restore send receive start probe compat conform dirty decode states help" -f -a "probe" -d 'Ask a device who it is and what a migration can do with it'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand help; and not __fish_seen_subcommand_from demo serve guest save restore send receive start probe compat conform dirty decode states help" -f -a "compat" -d 'Whether the data of one device, or of a saved file, fits another device'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand help; and not __fish_seen_subcommand_from demo serve guest save restore send receive start probe compat conform dirty decode states help" -f -a "conform" -d 'Check a device against the rules of the migration interface. THIS DESTROYS WHAT IT HOLDS'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand help; and not __fish_seen_subcommand_from demo serve guest save restore send receive start probe compat conform dirty decode states help" -f -a "dirty" -d 'Show which memory a device writes, without any migration'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand help; and not __fish_seen_subcommand_from demo serve guest save restore send receive start probe compat conform dirty decode states help" -f -a "decode" -d 'Show a saved file or a captured stream frame by frame, whole or damaged'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand help; and not __fish_seen_subcommand_from demo serve guest save restore send receive start probe compat conform dirty decode states help" -f -a "states" -d 'Show the migration state machine'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand help; and not __fish_seen_subcommand_from demo serve guest save restore send receive start probe compat conform dirty decode states help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand help; and __fish_seen_subcommand_from guest" -f -a "run" -d 'Run a guest here'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand help; and __fish_seen_subcommand_from guest" -f -a "receive" -d 'Receive a guest here and run it'
complete -c vfio-migrate -n "__fish_vfio_migrate_using_subcommand help; and __fish_seen_subcommand_from guest" -f -a "ctl" -d 'Ask or tell a guest something, over its control socket'
